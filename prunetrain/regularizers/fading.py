"""Channels on their way out: chosen by rank, faded to zero in a straight line, so that a cut of a chosen size is free at a chosen step.

In: a network, its weights, the MACs to get down to. Out: the channels to fade, and their weights brought to exactly zero over a number of
steps. After Wang et al., "Neural pruning via growing regularization", 2021 (arXiv 2012.09243): only what is to go is pushed, harder and
harder, and what stays trains freely. Here the push is a factor instead of a penalty, so that zero is reached at a known step.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunetrain.channels.selection import Granularity, KeepPlan
from prunetrain.channels.slices import sliced_layers
from prunetrain.channels.slicing import Proposal, propose_cut
from prunetrain.channels.spaces import ChannelSpaces, find_spaces
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph

_LARGEST_BLOCK = 16  # channels


class Fading:
    """The filters and input slices of some channels of a network.

    Args:
        graph: the network.
        spaces: its channel spaces.
        weights: its tensors by name; `scale_` updates them in place.
        channels: ids of the channels (`ChannelSpaces.ids`).
    """

    def __init__(self, graph: LayerGraph, spaces: ChannelSpaces, weights: Mapping[str, Tensor], channels: Sequence[int]) -> None:
        chosen = np.zeros(spaces.num_channels, dtype=bool)
        chosen[list(channels)] = True
        self._parts: list[tuple[Tensor, Tensor]] = []  # a weight, and which of it goes; the mask broadcasts over the weight
        for layer in sliced_layers(graph):
            weight = weights.get(f"{layer.name}.weight")
            for dim, axis in enumerate(("out", "in")):
                ids = spaces.ids.get((layer.name, axis))
                if weight is not None and ids is not None and chosen[ids].any():
                    shape = [-1 if d == dim else 1 for d in range(weight.dim())]
                    self._parts.append((weight, torch.from_numpy(chosen[ids]).view(shape).to(weight.device)))

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        """Multiply every filter and input slice of the channels."""
        for weight, mask in self._parts:
            weight.mul_(torch.where(mask, factor, 1.0).to(weight.dtype))


def coarsest_blocks(graph: LayerGraph, state: Mapping[str, Tensor], macs: float, *, criterion: str) -> dict[str, int]:
    """The coarsest blocks in which channels can go until the network needs at most this many MACs.

    Blocks of 16, where a space has that many, are what most hardware likes: of a narrow network, smaller ones hardly save time
    (docs/performance.md). Where they do not reach the number, no block is more than a half of its space, then a quarter, and so on.

    Args:
        graph: the network.
        state: its state dict.
        macs: multiply-accumulates of one image.
        criterion: which dead channels go (`selection.py`).

    Returns:
        A granularity: the size of the block, a power of two, for every space by name.
    """
    ranking = _Ranking(graph, state, criterion)
    smallest = ranking.without(len(ranking.order))
    sizes = {space.name: len(space.channels) for space in ranking.spaces.spaces}
    parts = 1
    while True:
        blocks = {name: _power_of_two(min(_LARGEST_BLOCK, size // parts)) for name, size in sizes.items()}
        if parts >= max(sizes.values()) or _macs(smallest, blocks) <= macs:
            return blocks
        parts *= 2


def choose_channels(
    graph: LayerGraph, state: Mapping[str, Tensor], macs: float, *, criterion: str, granularity: Granularity = 1
) -> list[int]:
    """The fewest channels, weakest first, without which the network needs at most this many MACs; else all but one a space.

    Args:
        graph: the network.
        state: its state dict.
        macs: multiply-accumulates of one image.
        criterion: which dead channels go (`selection.py`).
        granularity: channel counts stay multiples of this; what would be kept to fill one up does not fade.

    Returns:
        Ids, weakest first. A channel's strength is the norm of all its filters and input slices, as a share of the mean of its space.
    """
    ranking = _Ranking(graph, state, criterion)
    low, high = 0, len(ranking.order)
    while low < high:
        middle = (low + high) // 2
        if _macs(ranking.without(middle), granularity) <= macs:
            high = middle
        else:
            low = middle + 1
    proposal, chosen = ranking.without(low), ranking.order[:low]
    if proposal.graph != graph:  # whole branches go, so that its channels have other ids
        return chosen
    return _that_go(chosen, ranking.spaces, proposal.plan(granularity))


class _Ranking:
    """A network's channels that may go, weakest first, and the network without some of them."""

    def __init__(self, graph: LayerGraph, state: Mapping[str, Tensor], criterion: str) -> None:
        self._graph, self._state, self._criterion = graph, state, criterion
        self.spaces = find_spaces(graph)
        self.order = _weakest_first(graph, self.spaces, state)

    def without(self, count: int) -> Proposal:
        """What could be cut if so many had faded."""
        faded = {name: tensor.clone() for name, tensor in self._state.items()}
        Fading(self._graph, self.spaces, faded, self.order[:count]).scale_(0.0)
        return propose_cut(self._graph, faded, threshold=float(np.finfo(np.float32).tiny), criterion=self._criterion)


def _macs(proposal: Proposal, granularity: Granularity) -> int:
    return costs(proposal.graph_for(proposal.plan(granularity))).macs


def _power_of_two(number: int) -> int:
    """The largest that is not larger, at least 1."""
    return 1 << max(0, number.bit_length() - 1)


def _that_go(chosen: Sequence[int], spaces: ChannelSpaces, plan: KeepPlan) -> list[int]:
    """Of some channels, weakest first, as many of each space as a plan takes out of it."""
    left = np.bincount(spaces.space_of) - np.bincount(spaces.space_of, plan.keep).astype(np.int64)
    going = []
    for channel in chosen:
        space = spaces.space_of[channel]
        if left[space] > 0:
            left[space] -= 1
            going.append(channel)
    return going


def _weakest_first(graph: LayerGraph, spaces: ChannelSpaces, state: Mapping[str, Tensor]) -> list[int]:
    """The channels that may go, all but the strongest of each space."""
    norms = _norms(graph, spaces, state)
    counts = np.bincount(spaces.space_of)
    means = np.bincount(spaces.space_of, norms) / counts
    strength = norms / np.maximum(means, np.finfo(np.float64).tiny)[spaces.space_of]
    order = np.argsort(strength, kind="stable")
    _, from_the_end = np.unique(spaces.space_of[order[::-1]], return_index=True)
    strongest = order[::-1][from_the_end]
    stays = spaces.frozen_channels() | np.isin(np.arange(spaces.num_channels), strongest)
    return [int(channel) for channel in order if not stays[channel]]


def _norms(graph: LayerGraph, spaces: ChannelSpaces, state: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    """The norm of each channel: of its filters and input slices together."""
    squares = np.zeros(spaces.num_channels)
    for layer in sliced_layers(graph):
        weight = state.get(f"{layer.name}.weight")
        if weight is None:
            continue
        weights = weight.detach().double().cpu().square()
        for dim, axis in enumerate(("out", "in")):
            ids = spaces.ids.get((layer.name, axis))
            if ids is not None:
                squares += np.bincount(ids, weights.transpose(0, dim).flatten(1).sum(1).numpy(), minlength=spaces.num_channels)
    return np.sqrt(squares)
