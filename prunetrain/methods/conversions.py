"""Convert between the two kinds of decisions: masks of what a plan removes, and plans without the channels that masks leave unused.

In: a network and one decision. Out: the other.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from prunetrain.channels.selection import Candidates, KeepPlan, make_plan
from prunetrain.channels.spaces import Role, find_spaces
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.methods.masks import Masks
from prunetrain.methods.structured import slice_dim


def filter_masks(graph: LayerGraph, state: Mapping[str, Tensor], plan: KeepPlan) -> Masks:
    """Return masks of the filters that make a plan's removed channels, and of their biases.

    Filter pruning without cutting zeroes these. BatchNorm stays, so a channel may still be a nonzero constant; `channels/removal.py`
    removes that too.
    """
    layers = {layer.name: layer for layer in graph.layers}
    keep: dict[str, Tensor] = {}
    for name, axis in plan.spaces.axes(Role.PRODUCER):
        stays = torch.from_numpy(plan.keep[plan.spaces.ids[name, axis]])
        if bool(stays.all()):
            continue
        weight = state[f"{name}.weight"]
        stays = stays.to(weight.device)
        dim = slice_dim(layers[name], filters=True)
        keep[f"{name}.weight"] = stays.view([-1 if d == dim else 1 for d in range(weight.dim())]).expand(weight.shape).clone()
        if f"{name}.bias" in state:
            keep[f"{name}.bias"] = stays
    return Masks(keep)


def plan_of_masks(graph: LayerGraph, masks: Masks, granularity: int = 1) -> KeepPlan:
    """Return a plan without the channels that masks leave unused: all filters that make one are gone, or all slices that read it.

    Args:
        graph: the network.
        masks: masks of its weights; a weight without a mask stays.
        granularity: every space keeps a multiple of this many channels.
    """
    spaces = find_spaces(graph)
    layers = {layer.name: layer for layer in graph.layers}
    strength = np.zeros(spaces.num_channels)
    removable = np.zeros(spaces.num_channels, dtype=bool)
    for role in (Role.PRODUCER, Role.CONSUMER):
        unused, seen = np.ones(spaces.num_channels, dtype=bool), np.zeros(spaces.num_channels, dtype=bool)
        for name, axis in spaces.axes(role):
            ids, mask = spaces.ids[name, axis], masks.keep.get(f"{name}.weight")
            seen[ids] = True
            if mask is None:
                unused[ids] = False
                continue
            dim = slice_dim(layers[name], filters=role is Role.PRODUCER)
            left = mask.movedim(dim, 0).flatten(1).sum(1).cpu().numpy()
            np.logical_and.at(unused, ids, left == 0)
            np.add.at(strength, ids, left)
        removable |= unused & seen
    return make_plan(Candidates.from_removable(spaces, removable, strength), granularity)
