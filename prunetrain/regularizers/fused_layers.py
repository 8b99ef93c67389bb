"""The sums, the scaling and the gradients of a group lasso on a GPU, in three Triton kernels however many layers there are.

A small network's training step is bound by the launches of its kernels, and plain torch launches six per layer for a proximal step. Here
one kernel sums the squares of all filters, one those of all input slices, and one scales all weights, or writes the terms of all gradients.
They find the weights by a table of addresses, so nothing is compiled anew after a cut.
"""

import math
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

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
    inputs are apart in a filter, the positions of its sums of filters and of input slices (-1: none), and the number of filters. The tables
    of filters and of blocks of input slices tell a program its layer, and the first filter or input that is its own.
    """

    def __init__(self, layers: Sequence[PenalisedLayer]) -> None:
        self._penalised = [layer for layer in layers if layer.has_groups]
        self._weights = [layer.weight for layer in self._penalised]
        assert all(weight.dtype == torch.float32 for weight in self._weights)
        self._state = _state_of(self._weights)
        device = self._weights[0].device
        heights = [len(weight) for weight in self._weights]
        widths = [0 if layer.inputs is None else layer.weight.shape[1] for layer in self._penalised]
        self._layers = torch.tensor([_fields(layer) for layer in self._penalised], dtype=torch.int64).to(device)
        self._filters = torch.from_numpy(_programs(heights, 1)).to(device)
        self._inputs = torch.from_numpy(_programs(widths, _COLUMNS)).to(device)
        self._gradients = self._layers[:, 0]
        self._gradient_addresses: list[int] = []

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
        self._launch(numbers, in_place=True)

    def add_to_gradients_(self, numbers: Tensor) -> None:
        """Like `penalised_layers.add_to_gradients_`, by which it is done if a gradient is not laid out like its weight."""
        gradients = [(weight, weight.grad) for weight in self._weights]
        if not all(gradient is None or _is_laid_out_alike(weight, gradient) for weight, gradient in gradients):
            add_to_gradients_(self._penalised, numbers)
            return
        addresses = [0 if gradient is None else gradient.data_ptr() for _, gradient in gradients]
        if addresses != self._gradient_addresses:  # the allocator mostly finds the place of the last step again
            table = torch.tensor(addresses, dtype=torch.int64, pin_memory=numbers.device.type == "cuda")
            self._gradients = table.to(numbers.device, non_blocking=True)
            self._gradient_addresses = addresses
        self._launch(numbers, in_place=False)

    def _launch(self, numbers: Tensor, *, in_place: bool) -> None:
        from prunetrain.regularizers import triton_kernels as kernels

        with torch.cuda.device_of(numbers):  # type: ignore[no-untyped-call]
            kernels.scale_filters[(len(self._filters),)](
                self._layers, self._filters, numbers, self._gradients, IN_PLACE=in_place, BLOCK=_BLOCK, **_OPTIONS
            )


def can_fuse(layers: Sequence[PenalisedLayer]) -> bool:
    """Whether any layers have groups, and the kernels take their weights and work on their device."""
    weights = [layer.weight for layer in layers if layer.has_groups]
    return (
        len({weight.device for weight in weights}) == 1
        and all(weight.dtype == torch.float32 and _input_step(weight) is not None for weight in weights)
        and kernels_work(weights[0].device)
    )


@cache
def kernels_work(device: torch.device) -> bool:
    """Try the kernels on a few weights: whether a device is a GPU on which they compile, and find what torch finds.

    Where Triton is installed and this fails, a warning says why: steps are only slower then.
    """
    if device.type != "cuda" or find_spec("triton") is None:
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
    """Compare the results for a linear layer and for convs of both layouts with those of torch."""
    many = torch.arange(7 * 40 * 9, dtype=torch.float32, device=device).sin()
    found = []
    for fused in (False, True):
        convs, linear = many.view(7, 40, 3, 3), many[:2300].view(2, 1150)
        weights = [convs.clone(), linear.clone(), convs.clone(memory_format=torch.channels_last)]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        layers = [
            PenalisedLayer("contiguous", weights[0], slice(0, 7), slice(7, 47)),
            PenalisedLayer("linear", weights[1], slice(47, 49), None),
            PenalisedLayer("channels-last", weights[2], None, slice(49, 89)),
        ]
        sums = torch.zeros(90, dtype=torch.float32, device=device)
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
    return [weight.data_ptr(), math.prod(weight.shape[1:]), weight.shape[1], step, *sums, len(weight)]


def _input_step(weight: Tensor) -> int | None:
    """How far two inputs are apart in memory; None for a layout that is neither contiguous nor channels-last."""
    if weight.is_contiguous():
        return math.prod(weight.shape[2:])
    return 1 if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) else None


def _is_laid_out_alike(weight: Tensor, gradient: Tensor) -> bool:
    """Whether a gradient has its weight's type and place, and its strides where a stride means something."""
    strides = zip(weight.shape, weight.stride(), gradient.stride(), strict=True)
    return (weight.dtype, weight.device) == (gradient.dtype, gradient.device) and all(
        one == other for size, one, other in strides if size > 1
    )


def _programs(counts: Sequence[int], block: int) -> npt.NDArray[np.int32]:
    """A row for each block of each layer's filters or inputs: the layer, and the first of the block."""
    blocks = [-(-count // block) for count in counts]
    layer = np.repeat(np.arange(len(counts)), blocks)
    first = np.arange(sum(blocks)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    return np.stack([layer, first * block], axis=1).astype(np.int32)


def _state_of(weights: Sequence[Tensor]) -> list[tuple[int, torch.dtype, torch.Size, tuple[int, ...]]]:
    """What the tables depend on that may change in training code of a user's own."""
    return [(weight.data_ptr(), weight.dtype, weight.shape, weight.stride()) for weight in weights]
