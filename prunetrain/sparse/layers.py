"""Layers that skip the zeros of their weights, for inference: products of compressed sparse rows (`csr.py`) and dense activations.

In: a network with zeros. Out: a copy whose linear layers and convs with enough zeros are sparse; it computes the same up to rounding.
Whether that is faster depends on the network and machine: measure it with benchmarks/sparse_speed.py.
"""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunetrain.sparse.csr import sparsity, to_csr


class _Sparse(nn.Module):
    """A layer's weight as compressed rows, and its bias."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", to_csr(layer.weight))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def multiply(self, columns: Tensor) -> Tensor:
        """Return W x + b for every column x of (in * window, n): (out, n)."""
        made = self.weight @ columns
        return made if self.bias is None else made + self.bias[:, None]


class SparseLinear(_Sparse):
    """A linear layer, y = x W^T + b: (..., in) to (..., out). It computes no gradients."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs for inputs (..., in)."""
        made = self.multiply(x.reshape(-1, x.shape[-1]).T)
        return made.T.reshape(*x.shape[:-1], len(made))


class SparseConv2d(_Sparse):
    """A conv as one product with all its windows (`F.unfold`): (N, in, H, W) to (N, out, H', W'). It computes no gradients."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        assert not isinstance(layer.padding, str)
        self._window = _Window(layer.kernel_size, layer.dilation, layer.padding, layer.stride)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs for images (N, in, H, W)."""
        windows = F.unfold(x, *self._window)  # (N, in * window, positions)
        count, numbers, positions = windows.shape
        made = self.multiply(windows.transpose(0, 1).reshape(numbers, count * positions))
        height, width = (
            (side + 2 * padding - dilation * (size - 1) - 1) // stride + 1
            for side, size, dilation, padding, stride in zip(x.shape[2:], *self._window, strict=True)
        )
        return made.reshape(len(made), count, height, width).transpose(0, 1).contiguous()


class _Window(NamedTuple):
    """The arguments of `F.unfold` for a conv, in its order; each for height and width."""

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    stride: tuple[int, ...]


def with_sparse_layers(model: nn.Module, least: float = 0.9) -> nn.Module:
    """Return a copy of a network in eval mode whose layers with at least this share of zeros skip them; the others stay dense.

    Grouped convs and those whose padding is not a number of zeros stay dense too.
    """
    model = deepcopy(model).eval()
    for name, layer in list(model.named_modules()):
        if name and type(layer) in (nn.Linear, nn.Conv2d) and sparsity(layer.weight) >= least:
            if isinstance(layer, nn.Linear):
                model.set_submodule(name, SparseLinear(layer))
            elif layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                model.set_submodule(name, SparseConv2d(layer))
    return model
