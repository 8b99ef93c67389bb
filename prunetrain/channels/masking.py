"""Masking: set all weights of some channels to zero, shapes unchanged. A cut of these channels must compute the same function."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetrain.channels.computed_weights import find_computed_weights
from prunetrain.channels.selection import Bools
from prunetrain.channels.spaces import ChannelSpaces
from prunetrain.graph.layergraph import LayerGraph


def mask_channels(graph: LayerGraph, state: Mapping[str, Tensor], spaces: ChannelSpaces, gone: Bools) -> dict[str, Tensor]:
    """Return a state dict with some channels at zero: their filters, biases and input slices, and the scales and shifts applied to them.

    Weights that others are computed from stay as they are (`ComputedWeights.stored`).

    Args:
        graph: the network.
        state: its state dict; unchanged.
        spaces: its channel spaces.
        gone: (num_channels,), true for the channels to mask.
    """
    masked = dict(state)

    def zero(name: str, dim: int, positions: Tensor) -> None:
        if name in masked and bool(positions.any()):
            shape = [1] * masked[name].dim()
            shape[dim] = -1
            masked[name] = masked[name].masked_fill(positions.to(masked[name].device).view(shape), 0)

    for layer in graph.layers:
        for tensor, axes in layer.signature.axes.items():
            for dim, axis in enumerate(axes):
                if (layer.name, axis) in spaces.ids and tensor != "running_var":
                    zero(f"{layer.name}.{tensor}", dim, torch.from_numpy(gone[spaces.ids[layer.name, axis]]))
    stored = find_computed_weights(graph).stored
    for name, dim in spaces.dims.items():
        if name not in stored:
            zero(name, dim, torch.from_numpy(gone[spaces.ids[name, "features"]]))
    return masked
