"""Weights as compressed sparse rows (CSR), in torch's own tensors.

A weight (out, in, ...) is a matrix (out, in * window) with one row per filter, in the order of `F.unfold`. Indices are int32, half the
size of torch's default.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def to_csr(weight: Tensor) -> Tensor:
    """Return the matrix of a weight, (out, in * window), without its zeros."""
    matrix = weight.detach().reshape(len(weight), -1)
    with _without_warnings():
        found = matrix.to_sparse_csr()
    rows, columns = matrix.shape
    return csr_matrix(found.crow_indices().int(), found.col_indices().int(), found.values(), (rows, columns))


def csr_matrix(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Make a CSR matrix.

    Args:
        starts: (rows + 1,), where each row's numbers begin, and the end.
        columns: (n,), the column of each number, increasing within a row.
        values: (n,).
        shape: rows and columns.

    Raises:
        RuntimeError: if these do not make a valid matrix.
    """
    with _without_warnings():
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=True)


def sparsity(tensor: Tensor) -> float:
    """The share of zeros, in [0, 1]."""
    return 1 - int(tensor.count_nonzero()) / tensor.numel() if tensor.numel() else 0.0


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress torch's warnings about CSR tensors: that they are in beta, and about invariant checks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled", UserWarning)
        yield
