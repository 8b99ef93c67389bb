"""Files of networks whose weights are mostly zero: compressed sparse rows where these take less space, everything else as it is.

In: a state dict with zeros. Out: a file, and the same state dict back. A stored number costs its own bytes and those of its column (1, 2 or
4, by the row's length); a row costs 4. So float32 weights with 2-byte columns become smaller once a third of them are zeros.

The file is written by torch.save, for `torch.load(path, weights_only=True)`: `mark`, `format`, `dense` (tensors by name) and `csr` (by name
`starts`, `columns`, `values`, `shape`).
"""

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from prunetrain.errors import CheckpointError
from prunetrain.foreign.memory import available_memory, format_bytes
from prunetrain.foreign.refusal import RefusedFileError
from prunetrain.models.torch_files import load_torch_file
from prunetrain.sparse.csr import csr_matrix, to_csr

MARK: Final = "prunetrain sparse weights"
FORMAT: Final = 1
_COLUMN_KINDS: Final = (torch.uint8, torch.int16, torch.int32)


@dataclass(frozen=True)
class FileSizes:
    """Bytes of the same weights: as a plain state dict, as compressed rows, and of both after zlib's best compression."""

    dense: int
    csr: int
    dense_zlib: int
    csr_zlib: int


def load_sparse(path: Path) -> dict[str, Tensor]:
    """Load the state dict of a file, dense, on the CPU, in the order in which it was saved.

    Raises:
        CheckpointError: if the file is missing, damaged, was not made by `sparse_bytes`, or holds more than fits into memory.
    """
    try:
        content = load_torch_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file of sparse weights") from None
    except (OSError, RefusedFileError) as error:
        raise CheckpointError(f"{path}: damaged, or not a file of sparse weights ({error})") from None
    if not isinstance(content, dict) or content.get("mark") != MARK or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a file of sparse weights in format {FORMAT}")
    try:
        _check_memory(content["csr"])
        return unpack(content)
    except RefusedFileError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged: {(str(error).splitlines() or [type(error).__name__])[0]}") from None


def sparse_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a state dict's file: the result of `pack`, as `torch.save` writes it."""
    return _saved(pack(state))


def pack(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the content of a file, as plain values and tensors."""
    dense: dict[str, Tensor] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, given in state.items():
        tensor = given.detach().cpu()
        if tensor.dim() >= 2 and _csr_bytes(tensor) < tensor.nbytes:
            matrix = to_csr(tensor)
            columns = matrix.col_indices().to(_column_kind(matrix.shape[1]))
            parts = {"starts": matrix.crow_indices(), "columns": columns, "values": matrix.values()}
            rows[name] = {**parts, "shape": tuple(tensor.shape)}
        else:
            dense[name] = tensor.clone()  # torch.save would write all of the larger tensor behind a view
    return {"mark": MARK, "format": FORMAT, "names": list(state), "dense": dense, "csr": rows}


def unpack(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict that `pack` was given.

    Raises:
        RuntimeError, KeyError, TypeError, ValueError, AttributeError: for anything else.
    """
    dense = {name: _dense(**parts) for name, parts in content["csr"].items()} | content["dense"]
    return {name: dense[name] for name in content["names"]}


def _check_memory(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse weights that are larger than the free memory before any of them is made, since zeros take no space in a file."""
    shapes = {name: parts["shape"] for name, parts in rows.items()}
    if not all(shape and all(type(size) is int and size >= 0 for size in shape) for shape in shapes.values()):
        raise ValueError("a shape is not a tuple of whole numbers from 0")
    needed = sum(prod(shape) * rows[name]["values"].itemsize for name, shape in shapes.items())
    if needed > (available := available_memory()):
        raise RefusedFileError(f"its weights take {format_bytes(needed)}, and {format_bytes(available)} of memory are free")


def _dense(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return csr_matrix(starts, columns.int(), values, (shape[0], prod(shape[1:]))).to_dense().reshape(shape)


def _csr_bytes(tensor: Tensor) -> int:
    width = tensor.numel() // max(1, len(tensor))
    return 4 * (len(tensor) + 1) + int(tensor.count_nonzero()) * (tensor.element_size() + _column_kind(width).itemsize)


def _column_kind(width: int) -> torch.dtype:
    """The smallest integer type that holds every column."""
    return next(kind for kind in _COLUMN_KINDS if width - 1 <= torch.iinfo(kind).max)


def file_sizes(state: Mapping[str, Tensor]) -> FileSizes:
    """Measure the sizes of a state dict's files."""
    dense, csr = (_saved(content) for content in ({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, pack(state)))
    return FileSizes(len(dense), len(csr), len(zlib.compress(dense, 9)), len(zlib.compress(csr, 9)))


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()
