"""Fading: channels are chosen by rank and faded linearly to zero, so that a cut of a given size changes nothing at a given step.

In: a network, its weights, the MACs to reach. Out: the channels to fade, and their weights brought to exactly zero over a number of steps.
After Wang et al., "Neural pruning via growing regularization", 2021 (arXiv 2012.09243): only the channels to remove are pushed, harder and
harder, and the others train freely. Here the push is a factor instead of a penalty, so that zero is reached at a known step.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunetrain.channels.computed_weights import compute_weight, find_computed_weights
from prunetrain.channels.constants import find_constants
from prunetrain.channels.grids import Shapes
from prunetrain.channels.reductions import Reductions
from prunetrain.channels.rewriting import rewrite
from prunetrain.channels.selection import Bools, Candidates, Granularity, KeepPlan, find_candidates, make_plan
from prunetrain.channels.slices import measure_slices, sliced_layers, threshold_of_zeros
from prunetrain.channels.spaces import Axis, ChannelSpaces, Ids, find_spaces
from prunetrain.graph.costs import costs
from prunetrain.graph.functions import WEIGHTED
from prunetrain.graph.layergraph import LayerGraph, Operand, loses_whole_groups

_MAX_BLOCK = 32  # channels
_MIN_BLOCKS = 4  # per space
_REACHABLE_SHARE = 0.5  # share of the target in MACs that blocks must be able to reach; if they cannot, they prescribe the network


class Fading:
    """The filters and input slices of the fading channels of a network.

    Where a channel can go only if it is zero (`Reductions.must_be_zero`), its biases, scales and declared parameters fade too. Elsewhere a
    cut absorbs them.

    Args:
        graph: the network.
        spaces: its channel spaces.
        weights: its tensors by name; `scale_` updates them in place.
        channels: ids of the channels (`ChannelSpaces.ids`).
    """

    def __init__(self, graph: LayerGraph, spaces: ChannelSpaces, weights: Mapping[str, Tensor], channels: Sequence[int]) -> None:
        chosen = np.zeros(spaces.num_channels, dtype=bool)
        chosen[list(channels)] = True
        self._weights: list[Tensor] = []
        self._fade_masks: list[Tensor] = []  # for each weight, 1 where it fades, else 0
        for layer in sliced_layers(graph):
            weight = weights.get(f"{layer.name}.weight")
            ids = [spaces.ids.get((layer.name, axis)) for axis in ("out", "in")]
            if weight is None or not any(own is not None and chosen[own].any() for own in ids):
                continue
            rows, columns = (torch.zeros(1, dtype=torch.bool) if own is None else torch.from_numpy(chosen[own]) for own in ids)
            self._add(weight, (rows[:, None] | columns).view(len(rows), len(columns), *(1,) * (weight.dim() - 2)))
        to_zero = chosen & Reductions(graph, spaces, Shapes(graph)).must_be_zero()
        for name, axis, dim in _shifts(graph, spaces):
            if name in weights and to_zero[spaces.ids[axis]].any():
                going = torch.from_numpy(to_zero[spaces.ids[axis]])
                self._add(weights[name], going.view(-1, *(1,) * (weights[name].dim() - 1 - dim)))

    def _add(self, weight: Tensor, going: Tensor) -> None:
        self._weights.append(weight)
        self._fade_masks.append(_match_layout(weight, going.to(weight)))

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        """Multiply every filter and input slice of the channels by a factor; 0 makes them exactly zero."""
        if self._weights:
            torch._foreach_addcmul_(self._weights, self._weights, self._fade_masks, value=factor - 1)


def _shifts(graph: LayerGraph, spaces: ChannelSpaces) -> Iterator[tuple[str, Axis, int]]:
    """The biases, and the scales and shifts of normalisations and declared parameters: name, axis, and the dimension of the axis.

    Weights that others are computed from are not among them: those that are scaled may be normalised again, and 0/0 (`ComputedWeights`).
    """
    for layer in graph.layers:
        for tensor, axes in layer.signature.axes.items():
            if tensor in ("weight", "bias") and len(axes) == 1 and (layer.name, axes[0]) in spaces.ids:
                yield f"{layer.name}.{tensor}", (layer.name, axes[0]), 0
    stored = find_computed_weights(graph).stored
    for declared in graph.declared:
        if declared.role == "parameter" and declared.name in spaces.dims and declared.name not in stored:
            yield declared.name, (declared.name, "features"), spaces.dims[declared.name]


def _match_layout(weight: Tensor, mask: Tensor) -> Tensor:
    """Return a mask that broadcasts over a weight; on a GPU it has the weight's layout, so that few kernels multiply all weights."""
    return mask if weight.device.type == "cpu" else torch.empty_like(weight, requires_grad=False).copy_(mask)


class Ranking:
    """The channels of a network that can fade, weakest first, and the network's MACs without some of them.

    A channel's strength is the norm of all its filters and input slices, or another measure, relative to the mean of its space. The
    strongest channel of each space stays, and so do those that frozen weights keep alive.

    Args:
        graph: the network.
        state: its state dict.
        criterion: which dead channels go (`selection.py`).
        trained: names of the tensors that training changes; None stands for those that the graph calls trainable.
        importance: a measure of every channel, from 0, in place of its norm in each space that has any; (channels,), by id.
    """

    def __init__(
        self,
        graph: LayerGraph,
        state: Mapping[str, Tensor],
        *,
        criterion: str,
        trained: Collection[str] | None = None,
        importance: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self._graph, self._spaces = graph, find_spaces(graph)
        self._strengths, _ = _relative(self._spaces, _norms(graph, self._spaces, state))
        if importance is not None:
            relative, measured = _relative(self._spaces, importance)
            self._strengths = np.where(measured, relative, self._strengths)
        order = _weakest_first(self._spaces, self._strengths)
        # Weights are examined once: which channels could go if all had faded. A choice among them needs no more. Channels that are dead
        # now come alive again if they do not fade, such as those inside a branch whose last conv starts at zero.
        faded = {name: state[name].clone() for name in (_trainable(graph) if trained is None else trained) if name in state}
        Fading(graph, self._spaces, faded, order).scale_(0.0)
        able = self._removable(dict(state) | faded, criterion)
        self._order = [channel for channel in order if able[channel]]

    def coarsest_blocks(self, macs: float, dense: LayerGraph) -> dict[str, int]:
        """Choose the coarsest blocks in which channels can go until the network needs at most this many MACs per image.

        Most hardware prefers blocks of 16 or 32 (docs/performance.md). But blocks must leave a choice of what goes: none is more than a
        quarter of its space, and removing all that can go must leave at most half of `macs`. If it leaves more, none is more than an
        eighth, and so on. Blocks are shares of the dense network's spaces: if they shrank from cut to cut, the final counts would suit no
        hardware.

        Args:
            macs: the number of MACs to reach.
            dense: the network before any cut.

        Returns:
            A granularity: the block size, a power of two, for every space by name.
        """
        first = {space.name: len(space.channels) for space in find_spaces(dense).spaces}
        sizes = {space.name: first.get(space.name, len(space.channels)) for space in self._spaces.spaces}
        parts = _MIN_BLOCKS
        while True:
            blocks = {name: _power_of_two(min(_MAX_BLOCK, size // parts)) for name, size in sizes.items()}
            if parts >= max(sizes.values()) or self._macs(len(self._order), blocks) <= _REACHABLE_SHARE * macs:
                return blocks
            parts *= 2

    def least_macs(self, granularity: Granularity = 1) -> int:
        """The network's MACs per image without all the channels that can go; see `weakest`."""
        return self._macs(len(self._order), granularity)

    def weakest(self, macs: float, granularity: Granularity = 1) -> list[int]:
        """Choose the fewest channels without which the network needs at most this many MACs per image, or all that can go.

        Args:
            macs: the number of MACs to reach.
            granularity: channel counts stay multiples of this; channels that a cut would keep for that do not fade.

        Returns:
            Ids (`ChannelSpaces.ids`), weakest first.
        """
        low, high = 0, len(self._order)
        while low < high:
            middle = (low + high) // 2
            if self._macs(middle, granularity) <= macs:
                high = middle
            else:
                low = middle + 1
        return self._removed_by_plan(self._order[:low], self._plan(self._order[:low], granularity))

    def macs_without(self, channels: Sequence[int]) -> int:
        """The network's MACs per image without these channels."""
        return self._macs_of(self._plan(channels))

    def _removable(self, state: Mapping[str, Tensor], criterion: str) -> Bools:
        """The channels that could be cut, also of branches that could go as a whole: without these, other channels would have these ids."""
        threshold = threshold_of_zeros(state)
        slices = measure_slices(self._graph, state, threshold)
        constants = find_constants(self._graph, self._spaces, state, slices, threshold)
        return find_candidates(self._spaces, slices, constants, criterion).removable

    def _plan(self, channels: Sequence[int], granularity: Granularity = 1) -> KeepPlan:
        """The plan without these channels."""
        removable = np.zeros(self._spaces.num_channels, dtype=bool)
        removable[list(channels)] = True
        return make_plan(Candidates.from_removable(self._spaces, removable, self._strengths), granularity)

    def _macs(self, count: int, granularity: Granularity) -> int:
        return self._macs_of(self._plan(self._order[:count], granularity))

    def _macs_of(self, plan: KeepPlan) -> int:
        return costs(rewrite(self._graph, plan).graph).macs

    def _removed_by_plan(self, chosen: Sequence[int], plan: KeepPlan) -> list[int]:
        """Of some channels, weakest first, return as many of each space as a plan removes from it."""
        space_of = self._spaces.space_of
        left = np.bincount(space_of) - np.bincount(space_of, plan.keep).astype(np.int64)
        going = []
        for channel in chosen:
            if left[space_of[channel]] > 0:
                left[space_of[channel]] -= 1
                going.append(channel)
        return going


def _trainable(graph: LayerGraph) -> list[str]:
    """The tensors of the layers and parameters that the graph calls trainable."""
    of_layers = [f"{layer.name}.{tensor}" for layer in graph.layers if layer.trainable for tensor in layer.signature.axes]
    return of_layers + [tensor.name for tensor in graph.declared if tensor.trainable]


def _power_of_two(number: int) -> int:
    """The largest power of two up to a number, at least 1."""
    return 1 << max(0, number.bit_length() - 1)


def _relative(spaces: ChannelSpaces, measure: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], Bools]:
    """A measure relative to the mean of each channel's space, and for every channel whether that mean is over zero."""
    means = np.bincount(spaces.space_of, measure) / np.bincount(spaces.space_of)
    return measure / np.maximum(means, np.finfo(np.float64).tiny)[spaces.space_of], (means > 0)[spaces.space_of]


def _weakest_first(spaces: ChannelSpaces, strengths: npt.NDArray[np.float64]) -> list[int]:
    """The channels that may go, weakest first: all but the strongest of each space."""
    order = np.argsort(strengths, kind="stable")
    _, from_the_end = np.unique(spaces.space_of[order[::-1]], return_index=True)
    strongest = order[::-1][from_the_end]
    stays = spaces.frozen_channels() | np.isin(np.arange(spaces.num_channels), strongest)
    return [int(channel) for channel in order if not stays[channel]]


def _norms(graph: LayerGraph, spaces: ChannelSpaces, state: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    """The norm of each channel's filters and input slices together, computed weights included."""
    squares = np.zeros(spaces.num_channels)

    def add(weight: Tensor, rows: Ids | None, columns: Ids | None) -> None:
        weight = weight.detach().double().square()
        for dim, ids in enumerate((rows, columns)):
            if ids is not None:
                squares[:] += np.bincount(ids, weight.transpose(0, dim).flatten(1).sum(1).cpu().numpy(), minlength=spaces.num_channels)

    for layer in sliced_layers(graph):
        if f"{layer.name}.weight" in state:
            add(state[f"{layer.name}.weight"], spaces.ids.get((layer.name, "out")), spaces.ids.get((layer.name, "in")))
    fixed = find_computed_weights(graph).fixed
    for value, step in graph.results():
        if step.target in WEIGHTED and step["weight"] in fixed:
            weight, groups = compute_weight(graph, state, step["weight"]), 1 if step.target == "F.linear" else step["groups"]
            if not loses_whole_groups(groups, groups * weight.shape[1]):  # these are not among the sliced layers either
                add(weight, *(_ids_of(spaces, operand, size) for operand, size in zip((value, step["input"]), weight.shape, strict=False)))
    return np.sqrt(squares)


def _ids_of(spaces: ChannelSpaces, operand: Operand, size: int) -> Ids | None:
    """The first `size` channels of a tensor; None if it is not known to have so many."""
    ids = spaces.channels_of(operand)
    return ids[:size] if len(ids) >= size else None
