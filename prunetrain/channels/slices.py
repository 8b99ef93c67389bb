"""What the weights of each layer say about its slices: which are dead, and how strong each is. Every weight is read a few times, in place.

A filter is W[o], an input slice W[:, i], and W[o, i] the part that both share. Dead means that no absolute weight reaches the threshold
(PruneTrain, arXiv 1901.09290, section 4.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prunetrain.graph.layergraph import Layer, LayerGraph


@dataclass(frozen=True)
class LayerSlices:
    """The slices of a conv or linear layer.

    `dead` (out, in) bool: max_k |W[o, i, k]| < threshold. `filter_norms` (out,) and `input_norms` (in,): Euclidean norms.
    """

    dead: Tensor
    filter_norms: Tensor
    input_norms: Tensor


def sliced_layers(graph: LayerGraph) -> list[Layer]:
    """Layers whose weights are (out, in, ...): linear layers, and convs other than those that pass whole groups on.

    In a conv of few groups, `in` counts the inputs of a group.
    """
    kinds = ("Conv1d", "Conv2d", "Linear")
    return [layer for layer in graph.layers if layer.kind in kinds and not layer.passes_groups]


def measure_slices(graph: LayerGraph, state: Mapping[str, Tensor], threshold: float) -> dict[str, LayerSlices]:
    """The slices of every layer of `sliced_layers` and of transposed convs, on the CPU.

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


def _measured(weight: Tensor, threshold: float) -> LayerSlices:
    """The slices of a weight (out, in, ...). It is reduced over the window first, then over one dimension at a time, which is fast."""
    squares = weight.square()
    largest = weight.abs()
    if weight.dim() > 2:
        squares, largest = squares.flatten(2).sum(2), largest.flatten(2).amax(2)
    return LayerSlices((largest < threshold).cpu(), squares.sum(1).sqrt().cpu(), squares.sum(0).sqrt().cpu())
