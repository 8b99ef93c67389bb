"""Measure the slices of each layer's weights: which are dead, and how strong each is.

Weights are read in blocks of filters that fit into a processor's cache, so that no temporary tensor is as large as a layer.

A filter is W[o], an input slice W[:, i], and W[o, i] the part that both share. Dead means that no absolute weight reaches the threshold
(PruneTrain, arXiv 1901.09290, section 4.1).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from prunetrain.graph.layergraph import Layer, LayerGraph

_BLOCK: Final = 1 << 18
"""Weights per block."""


@dataclass(frozen=True)
class LayerSlices:
    """The slices of a conv or linear layer.

    `dead` (out, in) bool: max_k |W[o, i, k]| < threshold; `dead_filters` (out,) and `dead_inputs` (in,): where a whole row or column is.
    `filter_norms` (out,) and `input_norms` (in,): Euclidean norms.
    """

    dead: Tensor
    dead_filters: Tensor
    dead_inputs: Tensor
    filter_norms: Tensor
    input_norms: Tensor


def sliced_layers(graph: LayerGraph) -> list[Layer]:
    """The layers with weights (out, in, ...): linear layers, and convs other than those that pass whole groups on.

    In a conv with few groups, `in` counts the inputs of one group.
    """
    kinds = ("Conv1d", "Conv2d", "Linear")
    return [layer for layer in graph.layers if layer.kind in kinds and not layer.passes_groups]


def measure_slices(graph: LayerGraph, state: Mapping[str, Tensor], threshold: float) -> dict[str, LayerSlices]:
    """Measure the slices of every layer of `sliced_layers` and of transposed convs; the result is on the CPU.

    Args:
        graph: the network.
        state: its state dict.
        threshold: slices with every absolute weight under this are dead.
    """
    transposed = [layer for layer in graph.layers if layer.kind == "ConvTranspose2d" and layer.conv_groups == 1]
    found = {}
    for layer in (*sliced_layers(graph), *transposed):
        weight = state[f"{layer.name}.weight"].detach()
        if layer in transposed:
            weight = weight.transpose(0, 1)
        found[layer.name] = _measured(weight, threshold)
    return found


def threshold_of_zeros(state: Mapping[str, Tensor]) -> float:
    """A threshold that is a number in the precision of every tensor, so that a slice under it is zero, up to subnormal numbers."""
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    return max((torch.finfo(kind).tiny for kind in kinds), default=torch.finfo(torch.float32).tiny)


def blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield a weight (out, in, ...) a few filters at a time: their positions, and their part of the weight, which is not copied."""
    filters = max(1, _BLOCK * len(weight) // max(1, weight.numel()))
    for start in range(0, len(weight), filters):
        rows = slice(start, start + filters)
        yield rows, weight[rows]


def _measured(weight: Tensor, threshold: float) -> LayerSlices:
    """Measure a weight (out, in, ...). For speed, a block is reduced over the window first, then over one dimension at a time."""
    dead = torch.empty(weight.shape[:2], dtype=torch.bool, device=weight.device)
    filters, inputs = weight.new_empty(weight.shape[0]), weight.new_zeros(weight.shape[1])
    largest_of_filter, largest_of_input = torch.empty_like(filters), torch.zeros_like(inputs)
    for rows, block in blocks(weight):
        squares, largest = block.square(), block.abs()
        if block.dim() > 2:
            squares, largest = squares.flatten(2).sum(2), largest.flatten(2).amax(2)
        torch.lt(largest, threshold, out=dead[rows])
        torch.sum(squares, 1, out=filters[rows])
        inputs += squares.sum(0)
        torch.amax(largest, 1, out=largest_of_filter[rows])
        torch.maximum(largest_of_input, largest.amax(0), out=largest_of_input)
    dead_filters, dead_inputs = largest_of_filter < threshold, largest_of_input < threshold
    return LayerSlices(dead.cpu(), dead_filters.cpu(), dead_inputs.cpu(), filters.sqrt_().cpu(), inputs.sqrt_().cpu())
