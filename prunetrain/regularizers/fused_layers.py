"""The sums, the scaling and the gradients of a group lasso on a GPU, in three Triton kernels however many layers there are.

A small network's training step is bound by the launches of its kernels, and plain torch launches six per layer for a proximal step. Here
one kernel sums the squares of all filters, one those of all input slices, and one scales all weights, or writes the terms of all gradients.
They find the weights by a table of addresses, so nothing is compiled anew after a cut.
"""

import math
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunetrain.regularizers.penalised_layers import PenalisedLayer, add_to_gradients_, scale_, sum_squares

_BLOCK = 1024  # weights of a filter that a program reads at once
_ROWS, _COLUMNS = 64, 32  # the same for input slices: so many weights of so many
_OPTIONS = {"enable_fp_fusion": True}  # a square and its addition round once; Triton warns if this is left open


class FusedLayers:
    """The tables of some layers, which the kernels read.

    Args:
        layers: some with groups, whose weights are float32 and on one GPU, in torch's contiguous or channels-last layout (`can_fuse`).

    The table of layers has a row of 64-bit numbers for each: the weight's address, the size of a filter, the number of inputs, how far two
    inputs are apart in a filter, the positions of its sums of filters and of input slices (-1: none), the number of filters, and, once
    there is one, the address of a tensor like the weight for products. The tables of filters and of blocks of input slices tell a program
    its layer, and the first filter or input that is its own.
    """

    def __init__(self, layers: Sequence[PenalisedLayer]) -> None:
        layers = [layer for layer in layers if layer.has_groups]
        self._weights = [layer.weight for layer in layers]
        self._state = _state_of(self._weights)
        device = self._weights[0].device
        heights = [len(layer.weight) for layer in layers]
        widths = [0 if layer.inputs is None else layer.weight.shape[1] for layer in layers]
        self._layers = torch.tensor([_fields(layer) for layer in layers], dtype=torch.int64).to(device)
        self._products: list[Tensor] = []
        self._filters = torch.from_numpy(_programs(heights, 1)).to(device)
        self._inputs = torch.from_numpy(_programs(widths, _COLUMNS)).to(device)

    @property
    def is_current(self) -> bool:
        """Whether the weights are still where they were, and as they were laid out."""
        return _state_of(self._weights) == self._state

    def sum_squares(self, sums: Tensor) -> None:
        """Like `penalised_layers.sum_squares`; `sums` is float32."""
        from prunetrain.regularizers import triton_kernels as kernels

        with torch.cuda.device_of(sums):  # type: ignore[no-untyped-call]
            kernels.sum_filters[(len(self._filters),)](self._layers, self._filters, sums, BLOCK=_BLOCK, **_OPTIONS)
            if len(self._inputs):
                kernels.sum_inputs[(len(self._inputs),)](self._layers, self._inputs, sums, ROWS=_ROWS, COLUMNS=_COLUMNS, **_OPTIONS)

    def scale_(self, numbers: Tensor) -> None:
        """Like `penalised_layers.scale_`; `numbers` is float32."""
        from prunetrain.regularizers import triton_kernels as kernels

        with torch.cuda.device_of(numbers):  # type: ignore[no-untyped-call]
            kernels.scale_filters[(len(self._filters),)](self._layers, self._filters, numbers, PRODUCT=True, BLOCK=_BLOCK, **_OPTIONS)

    def add_to_gradients_(self, numbers: Tensor) -> None:
        """Like `penalised_layers.add_to_gradients_`; needs memory for the weights once more, from the first time on."""
        from prunetrain.regularizers import triton_kernels as kernels

        if not self._products:
            self._products = [torch.empty_like(weight, requires_grad=False) for weight in self._weights]
            self._layers[:, -1] = torch.tensor([product.data_ptr() for product in self._products]).to(self._layers.device)
        with torch.cuda.device_of(numbers):  # type: ignore[no-untyped-call]
            kernels.scale_filters[(len(self._filters),)](self._layers, self._filters, numbers, PRODUCT=False, BLOCK=_BLOCK, **_OPTIONS)
        pairs = [(weight.grad, product) for weight, product in zip(self._weights, self._products, strict=True) if weight.grad is not None]
        if pairs:
            torch._foreach_add_([gradient for gradient, _ in pairs], [product for _, product in pairs])


def can_fuse(layers: Sequence[PenalisedLayer]) -> bool:
    """Whether any layers have groups, and the kernels take their weights and work on their device."""
    weights = [layer.weight for layer in layers if layer.has_groups]
    return (
        len({weight.device for weight in weights}) == 1
        and kernels_work(weights[0].device)
        and all(weight.dtype == torch.float32 and _input_step(weight) is not None for weight in weights)
    )


@cache
def kernels_work(device: torch.device) -> bool:
    """Try the kernels on a few weights: whether a device is a GPU on which they compile, and find what torch finds.

    Where Triton is installed and this fails, a warning says why: steps are only slower then.
    """
    if device.type != "cuda":
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    try:
        if _agree_with_torch(device):
            return True
        why = "their results differ from torch's"
    except Exception as error:  # whatever compilers and drivers raise
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    warnings.warn(f"Triton's kernels do not work on {device} ({why}): the group lasso uses torch's, which are slower", stacklevel=2)
    return False


def _agree_with_torch(device: torch.device) -> bool:
    """Compare the results for a small conv and a linear layer with those of torch."""
    convs, linear = torch.arange(7 * 40 * 9.0, device=device).sin(), torch.arange(5 * 1100.0, device=device).sin()
    found = []
    for fused in (False, True):
        weights = [
            convs.view(7, 40, 3, 3).clone(),
            linear.view(5, 1100).clone(),
            convs.view(7, 40, 3, 3).clone(memory_format=torch.channels_last),
        ]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        layers = [
            PenalisedLayer("contiguous", weights[0], slice(0, 7), slice(7, 47)),
            PenalisedLayer("linear", weights[1], None, slice(47, 1147)),
            PenalisedLayer("channels-last", weights[2], slice(1147, 1154), None),
        ]
        sums = torch.zeros(1155, device=device)
        if fused:
            tables = FusedLayers(layers)
            tables.sum_squares(sums)
            tables.add_to_gradients_(sums)
            tables.scale_(sums.sqrt())
        else:
            sum_squares(layers, sums)
            add_to_gradients_(layers, sums)
            scale_(layers, sums.sqrt())
        found.append([sums, *weights, *(weight.grad for weight in weights)])
    return all(torch.allclose(one, other, rtol=1e-4) for one, other in zip(*found, strict=True))


def _fields(layer: PenalisedLayer) -> list[int]:
    """A row of the table of layers."""
    weight = layer.weight
    step = _input_step(weight)
    assert step is not None
    sums = [-1 if own is None else own.start for own in (layer.filters, layer.inputs)]
    return [weight.data_ptr(), math.prod(weight.shape[1:]), weight.shape[1], step, *sums, len(weight), 0]


def _input_step(weight: Tensor) -> int | None:
    """How far two inputs are apart in memory; None for a layout that is neither contiguous nor channels-last."""
    if weight.is_contiguous():
        return math.prod(weight.shape[2:])
    return 1 if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) else None


def _programs(counts: Sequence[int], block: int) -> npt.NDArray[np.int32]:
    """A row for each block of each layer's filters or inputs: the layer, and the first of the block."""
    blocks = [-(-count // block) for count in counts]
    layer = np.repeat(np.arange(len(counts)), blocks)
    first = np.arange(sum(blocks)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    return np.stack([layer, first * block], axis=1).astype(np.int32)


def _state_of(weights: Sequence[Tensor]) -> list[tuple[int, torch.dtype, tuple[int, ...]]]:
    """What the tables depend on that may change in training code of a user's own."""
    return [(weight.data_ptr(), weight.dtype, weight.stride()) for weight in weights]
