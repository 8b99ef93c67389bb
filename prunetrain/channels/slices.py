"""What the weights of each layer say about its slices: which are dead, and how strong each is. Every weight is read a few times, in place.

A filter is W[o], an input slice W[:, i], and W[o, i] the part that both share. Dead means that no absolute weight reaches the threshold
(PruneTrain, arXiv 1901.09290, section 4.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
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
    """Layers whose weights have filters and input slices over all channels: convs that are not grouped, and linear layers."""
    return [layer for layer in graph.layers if layer.kind == "Linear" or (layer.kind == "Conv2d" and layer["groups"] == 1)]


def measure_slices(graph: LayerGraph, state: Mapping[str, Tensor], threshold: float) -> dict[str, LayerSlices]:
    """The slices of every layer of `sliced_layers`, on the CPU.

    Args:
        graph: the network.
        state: its state dict.
        threshold: slices with every absolute weight under this are dead.
    """
    found = {}
    for layer in sliced_layers(graph):
        weight = state[f"{layer.name}.weight"].detach()
        window = tuple(range(2, weight.dim()))
        largest = torch.maximum(weight.amax(window), -weight.amin(window)) if window else weight.abs()
        found[layer.name] = LayerSlices(
            (largest < threshold).cpu(),
            torch.linalg.vector_norm(weight, dim=(1, *window)).cpu(),
            torch.linalg.vector_norm(weight, dim=(0, *window)).cpu(),
        )
    return found
