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

from prunetrain.channels.selection import KeepPlan
from prunetrain.channels.slices import sliced_layers
from prunetrain.channels.slicing import Proposal, propose_cut
from prunetrain.channels.spaces import ChannelSpaces, find_spaces
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph


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


def choose_channels(graph: LayerGraph, state: Mapping[str, Tensor], macs: float, *, criterion: str, granularity: int = 1) -> list[int]:
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
    spaces = find_spaces(graph)
    order = _weakest_first(graph, spaces, state)

    def proposal_without(count: int) -> Proposal:
        faded = {name: tensor.clone() for name, tensor in state.items()}
        Fading(graph, spaces, faded, order[:count]).scale_(0.0)
        return propose_cut(graph, faded, threshold=float(np.finfo(np.float32).tiny), criterion=criterion)

    def macs_without(count: int) -> int:
        proposal = proposal_without(count)
        return costs(proposal.graph_for(proposal.plan(granularity))).macs

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if macs_without(middle) <= macs:
            high = middle
        else:
            low = middle + 1
    proposal = proposal_without(low)
    if proposal.graph != graph:  # whole branches go, so that its channels have other ids
        return order[:low]
    return _that_go(order[:low], spaces, proposal.plan(granularity))


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
