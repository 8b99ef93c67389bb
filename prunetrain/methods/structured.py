"""Masks of whole slices: the filters W[o] or input slices W[:, i] of each layer with the smallest Euclidean norms.

These are the projections of structured ADMM (Zhang et al., 2018, arXiv 1807.11091). Each layer is masked separately, so a residual stream
keeps its channels; `conversions.py` finds the channels that can then be cut.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import Layer, LayerGraph
from prunetrain.methods.counting import removed_count, smallest_mask
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Options
from prunetrain.methods.weights import maskable_layers


def structured_masks(graph: LayerGraph, state: Mapping[str, Tensor], rate: float, options: Options) -> Masks:
    """Return masks that remove floor(rate * n) of the n filters, or input slices, of every layer.

    Args:
        graph: the network. Layers that make its output keep their filters, and layers that read its input keep their slices; convs that
            pass whole groups on (depthwise ones) and grouped transposed convs stay whole.
        state: its state dict.
        rate: share to remove, in [0, 1).
        options: only `scope`, `structure` and `layer_rates` are read.

    Raises:
        ConfigError: for global scope, and for a network in which no layer has such slices.
    """
    if options.scope == "global":
        raise ConfigError(f"{options.structure} are pruned layer by layer: leave scope at 'layer'")
    filters = options.structure == "filters"
    excluded = _layers_at_output(graph) if filters else _layers_at_input(graph)
    keep = {}
    for layer in maskable_layers(graph):
        if layer.name in excluded or layer.passes_groups or (layer.kind == "ConvTranspose2d" and layer.conv_groups > 1):
            continue
        weight = state[f"{layer.name}.weight"].detach()
        dim = slice_dim(layer, filters=filters)
        norms = torch.linalg.vector_norm(weight.movedim(dim, 0).flatten(1), dim=1)
        gone = smallest_mask(norms, removed_count(len(norms), options.layer_rates.get(layer.name, rate)))
        keep[f"{layer.name}.weight"] = (~gone).view([-1 if d == dim else 1 for d in range(weight.dim())]).expand(weight.shape).clone()
    if not keep:
        raise ConfigError(f"no layer of this network has {options.structure} that can go")
    return Masks(keep)


def slice_dim(layer: Layer, *, filters: bool) -> int:
    """Return the dimension of a layer's weight along which its filters lie, or its input slices."""
    return int(filters == (layer.kind == "ConvTranspose2d"))


def _layers_at_output(graph: LayerGraph) -> set[str]:
    """The convs and linear layers with only functions and normalisation between them and the network's outputs."""
    maskable = {layer.name for layer in maskable_layers(graph)}
    reached, found = {value.index for value in graph.outputs}, set()
    for value, step in reversed(list(graph.results())):
        if value.index in reached:
            if step.layer in maskable:
                found.add(step.layer)
            else:
                reached |= {read.index for read in step.inputs()}
    return found


def _layers_at_input(graph: LayerGraph) -> set[str]:
    """The convs and linear layers with only functions and normalisation between them and the network's input."""
    maskable = {layer.name for layer in maskable_layers(graph)}
    reached, found = {0}, set()
    for value, step in graph.results():
        if reached & {read.index for read in step.inputs()}:
            if step.layer in maskable:
                found.add(step.layer)
            else:
                reached.add(value.index)
    return found
