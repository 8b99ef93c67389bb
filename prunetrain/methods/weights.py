"""The weights that masks apply to: those of linear layers and convs. Biases, normalisation and declared tensors stay whole."""

from collections.abc import Mapping

from torch import Tensor

from prunetrain.graph.layergraph import Layer, LayerGraph


def maskable_layers(graph: LayerGraph) -> list[Layer]:
    """The layers whose weights can be masked: all linear layers and convs, including depthwise and transposed ones."""
    return [layer for layer in graph.layers if layer.kind == "Linear" or layer.is_convolution]


def maskable_weights(graph: LayerGraph, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that can be masked, by their names in the state dict."""
    return {name: state[name].detach() for name in (f"{layer.name}.weight" for layer in maskable_layers(graph))}


def layer_of(weight: str) -> str:
    """The name of the layer that a weight belongs to."""
    return weight.rpartition(".")[0]
