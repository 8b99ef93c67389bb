"""Filters that the user chose to keep, instead of those that their weights would keep."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from prunetrain.channels.slicing import Proposal
from prunetrain.errors import ConfigError, unknown_name


def keep_filters(proposal: Proposal, keep: Mapping[str, Collection[int]]) -> Proposal:
    """Return the proposal with some layers' filters chosen by hand; their other filters go, with whatever shares their channels.

    Args:
        proposal: the cut that the weights suggest.
        keep: the filters that stay, by layer name.

    Raises:
        ConfigError: for a layer that does not exist or whose channels may not be cut, or a filter that it does not have.
    """
    candidates = proposal.candidates
    spaces, removable = candidates.spaces, candidates.removable.copy()
    layers = {name for name, axis in spaces.ids if axis == "out"}
    for name in keep:
        if name not in layers:
            raise ConfigError(unknown_name("layer", name, layers))
        frozen = next((spaces.spaces[i].frozen for i in spaces.space_of[spaces.ids[name, "out"]] if spaces.spaces[i].frozen), "")
        if frozen:
            raise ConfigError(f"the channels of {name} are never cut: {frozen}")
        removable[spaces.ids[name, "out"]] = True
    for name, filters in keep.items():
        count, positions = len(spaces.ids[name, "out"]), torch.as_tensor(list(filters))
        numbers = not (positions.is_floating_point() or positions.dtype == torch.bool)  # an empty list is of floats
        if not numbers or not all(0 <= position < count for position in positions.tolist()):
            raise ConfigError(f"keep some of the filters 0 to {count - 1} of {name}, by number, not {positions.tolist()}")
        removable[spaces.ids[name, "out"][positions.numpy()]] = False
    return replace(proposal, candidates=replace(candidates, removable=removable))
