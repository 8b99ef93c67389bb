"""The 2:4 pattern: of every four consecutive weights along the inputs, the two smallest go.

Mishra et al., "Accelerating sparse deep neural networks", 2021, arXiv 2104.08378: the pattern that NVIDIA's sparse tensor cores skip. In:
weights. Out: `Masks`. `sparse/semi_structured.py` runs layers with them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import Layer, LayerGraph
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Options
from prunetrain.methods.structured import slice_dim
from prunetrain.methods.weights import maskable_layers

_GROUP = 4


def two_of_four(graph: LayerGraph, state: Mapping[str, Tensor], rate: float, options: Options) -> Masks:
    """Return masks of every layer with a multiple of four inputs (per group, for grouped convs); others, and those of rate 0, stay whole.

    Raises:
        ConfigError: for a rate other than 0.5, and for a network without such a layer.
    """
    if rate != 1 / 2 or any(options.layer_rates.values()):
        raise ConfigError("2:4 removes half of the weights: give rate 0.5, and layers no rate other than 0")
    keep = {}
    for layer in maskable_layers(graph):
        if layer.name not in options.layer_rates and _inputs(layer) % _GROUP == 0:
            dim = slice_dim(layer, filters=False)
            inputs_second = state[f"{layer.name}.weight"].detach().movedim(dim, 1)
            keep[f"{layer.name}.weight"] = keep_two_of_four(inputs_second).movedim(1, dim)
    if not keep:
        raise ConfigError("2:4 needs layers with a multiple of 4 inputs, but this network has none")
    return Masks(keep)


def _inputs(layer: Layer) -> int:
    """The number of inputs that each filter reads."""
    return int(layer["in_features"]) if layer.kind == "Linear" else layer["in_channels"] // layer.conv_groups


def keep_two_of_four(weight: Tensor) -> Tensor:
    """Return, as bool, which two of every four along `in` of a weight (out, in, ...) are largest; of equal ones the last stay."""
    inputs_last = weight.abs().movedim(1, -1)
    groups = inputs_last.reshape(*inputs_last.shape[:-1], -1, _GROUP)  # (out, ..., in / 4, 4)
    order = groups.argsort(dim=-1, stable=True)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order[..., _GROUP // 2 :], value=True)
    return keep.flatten(-2).movedim(-1, 1)
