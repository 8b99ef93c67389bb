"""Rank channels by a criterion on their filters: the common part of `filters.py`, `fpgm.py` and `units.py`.

In: a network, a rate, a criterion. Out: a `KeepPlan`, in which every space that may be pruned has lost floor(rate * n) of its n channels.

The filter of a channel is the concatenation of its producers' filters. With one producer that is W[c]. With several (a residual stream),
each layer's filters are divided by their root mean square norm, so that no layer dominates the others; then L1 norms add up, squared L2
norms add up, and distances are those of the joint vectors. A channel that a producer does not make has zeros there.
"""

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from prunetrain.channels.selection import Candidates, KeepPlan, make_plan
from prunetrain.channels.spaces import ChannelSpace, ChannelSpaces, Role, find_spaces
from prunetrain.errors import ConfigError
from prunetrain.graph.functions import WEIGHTED
from prunetrain.graph.layergraph import Layer, LayerGraph
from prunetrain.methods.counting import removed_count, smallest_mask
from prunetrain.methods.options import Options
from prunetrain.methods.structured import slice_dim

Criterion: TypeAlias = Callable[[Tensor, int, str], Tensor]
"""A function from filters (n, numbers), the number to remove and the space's name to scores (n,): the smallest go."""

FILTERS = ("Conv1d", "Conv2d", "ConvTranspose2d")
UNITS = ("Linear",)


def plan_by_rank(
    graph: LayerGraph, state: Mapping[str, Tensor], rate: float, options: Options, *, kinds: Collection[str], criterion: Criterion
) -> KeepPlan:
    """Return the plan that removes the channels with the lowest scores of each space.

    Args:
        graph: the network.
        state: its state dict.
        rate: share of each space's channels to remove, in [0, 1). If producers have rates of their own, the smallest counts.
        options: only `layer_rates`, `streams` and `granularity` are read here.
        kinds: the classes of the layers whose outputs may go. Spaces with several producers are pruned only with `streams="together"`.
        criterion: scores the filters of a space.

    Raises:
        ConfigError: if the network has no such channels.
    """
    spaces = find_spaces(graph)
    layers = {layer.name: layer for layer in graph.layers}
    removable = np.zeros(spaces.num_channels, dtype=bool)
    strength = np.zeros(spaces.num_channels)
    pruned = [space for space in spaces.spaces if _is_prunable(space, layers, kinds, options)]
    if not pruned:
        why = _why_unprunable(spaces, layers, kinds)
        if any(step.target in WEIGHTED for step in graph.steps):
            why += "; a method removes what layers make, not functions that are given their weights"
        raise ConfigError(f"no {'units' if kinds == UNITS else 'filters'} of this network can go: {why}")
    for space in pruned:
        share = min(options.layer_rates.get(name, rate) for name in space.members[Role.PRODUCER])
        count = removed_count(len(space.channels), share)
        scores = criterion(filters_of(space, spaces, layers, state), count, space.name).double().cpu()
        removable[space.channels] = smallest_mask(scores, count).numpy()
        strength[space.channels] = scores.numpy()
    return make_plan(Candidates.from_removable(spaces, removable, strength), options.granularity)


def _is_prunable(space: ChannelSpace, layers: Mapping[str, Layer], kinds: Collection[str], options: Options) -> bool:
    producers = [layers[name] for name in space.members[Role.PRODUCER] if name in layers]
    if space.frozen or len(producers) < max(1, len(space.members[Role.PRODUCER])):
        return False
    grouped = any(layer.kind == "ConvTranspose2d" and layer.conv_groups > 1 for layer in producers)
    alone = len(producers) == 1 or options.streams == "together"
    return alone and not grouped and any(layer.kind in kinds for layer in producers)


def _why_unprunable(spaces: ChannelSpaces, layers: Mapping[str, Layer], kinds: Collection[str]) -> str:
    """Explain why nothing can be pruned, and what to do."""
    made = [space for space in spaces.spaces if any(name in layers and layers[name].kind in kinds for name in space.members[Role.PRODUCER])]
    if not made:
        return f"it has no layer of the classes {', '.join(sorted(kinds))}"
    if all(space.frozen for space in made):
        return f"all are frozen ({made[0].name}: {made[0].frozen})"
    return "all have several producers: prune them with streams='together'"


def filters_of(space: ChannelSpace, spaces: ChannelSpaces, layers: Mapping[str, Layer], state: Mapping[str, Tensor]) -> Tensor:
    """Return the filters of a space's channels, (channels, numbers), in the order of `space.channels`."""
    blocks = [_producer_filters(layers[name], space, spaces, state[f"{name}.weight"].detach()) for name in space.members[Role.PRODUCER]]
    if len(blocks) > 1:
        blocks = [block / _root_mean_square_norm(block) for block in blocks]
    return torch.cat(blocks, 1)


def _producer_filters(layer: Layer, space: ChannelSpace, spaces: ChannelSpaces, weight: Tensor) -> Tensor:
    """One producer's part of the filters; rows that belong to the same channel are concatenated."""
    rows = weight.movedim(slice_dim(layer, filters=True), 0).flatten(1)  # (out, numbers)
    channel = np.searchsorted(space.channels, spaces.ids[layer.name, "out"])  # the channel of each row
    times = np.bincount(channel, minlength=len(space.channels))
    order = np.argsort(channel, kind="stable")
    nth = np.empty_like(order)  # the number of each row within its channel
    nth[order] = np.arange(len(order)) - np.repeat(np.cumsum(times) - times, times)
    block = rows.new_zeros(len(space.channels), int(times.max()), rows.shape[1])
    block[torch.from_numpy(channel), torch.from_numpy(nth)] = rows
    return block.flatten(1)


def _root_mean_square_norm(block: Tensor) -> Tensor:
    norm = block.square().sum(1).mean().sqrt()
    return torch.where(norm > 0, norm, 1)
