"""Decide which channels go: from dead slices to a KeepPlan.

The criterion `union` (the paper's) wants every producer filter and every consumer slice of the channel to be dead; `either` wants every
consumer to be able to do without it, because its slice is dead or because it can absorb the constant that arrives (`constants.py`).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from prunetrain.channels.constants import Constants
from prunetrain.channels.slices import LayerSlices
from prunetrain.channels.spaces import Axis, ChannelSpaces, Ids, Role

Bools = npt.NDArray[np.bool_]

Granularity: TypeAlias = int | Mapping[str, int]
"""The channel count of every space is a multiple of this: one number, or one per space by name, 1 for names that are missing."""

KEEP_ALL = 1_000_000
"""A granularity at which nothing is cut, since a space never keeps more than it has.

It is a number, so that rounding needs no special case and the file of timings can list it with the other multiples.
"""


def most_common_granularity(granularity: Granularity) -> int:
    """The multiple that most spaces are rounded to, for uses that need a single number; 1 if these spaces keep all channels."""
    if not isinstance(granularity, int):
        counts = Counter(granularity.values())
        granularity = max(counts, key=lambda multiple: (counts[multiple], multiple), default=1)
    return granularity if granularity < KEEP_ALL else 1


@dataclass(frozen=True)
class Candidates:
    """What may be cut: for every channel id, whether it is removable, and its strength (the norm of all its slices).

    `derived` (n, 2): constant channels, and channels that they are computed from. The first of a pair can go only together with the second
    (`Constants.derived`).
    """

    spaces: ChannelSpaces
    removable: Bools
    strength: npt.NDArray[np.float64]
    derived: Ids

    @classmethod
    def from_removable(cls, spaces: ChannelSpaces, removable: Bools, strength: npt.NDArray[np.float64]) -> "Candidates":
        """Candidates that may go whatever they compute (`removal.py`), except for those in frozen spaces."""
        return cls(spaces, removable & ~spaces.frozen_channels(), strength, np.empty((0, 2), dtype=np.int64))


@dataclass(frozen=True)
class KeepPlan:
    """Which channels stay: `keep[id]` for each channel. `rescued` names the spaces that were all dead and keep their strongest channels."""

    spaces: ChannelSpaces
    keep: Bools
    rescued: tuple[str, ...] = ()

    def kept(self, axis: Axis) -> npt.NDArray[np.int64]:
        """The surviving positions of an axis, sorted."""
        return np.flatnonzero(self.keep[self.spaces.ids[axis]])

    def counts(self) -> dict[str, tuple[int, int]]:
        """The channels kept and the channels before, for every space by name."""
        return {space.name: (int(self.keep[space.channels].sum()), len(space.channels)) for space in self.spaces.spaces}


def find_candidates(spaces: ChannelSpaces, slices: Mapping[str, LayerSlices], constants: Constants, criterion: str) -> Candidates:
    """Find the channels that may go by a criterion.

    Args:
        spaces: the network's channel spaces.
        slices: its dead slices.
        constants: its constant activations.
        criterion: "union" or "either".
    """
    removable = ~spaces.frozen_channels()
    energy = np.zeros(spaces.num_channels)
    for axis in spaces.axes(Role.PRODUCER):
        if axis[0] in slices:
            found = slices[axis[0]]
            np.add.at(energy, spaces.ids[axis], found.filter_norms.double().numpy() ** 2)
            if criterion == "union":
                np.logical_and.at(removable, spaces.ids[axis], found.dead_filters.numpy())
    for axis in spaces.axes(Role.CONSUMER):
        found = slices[axis[0]]
        np.add.at(energy, spaces.ids[axis], found.input_norms.double().numpy() ** 2)
        gone = found.dead_inputs if criterion == "union" else constants.consumers[axis[0]].expendable
        np.logical_and.at(removable, spaces.ids[axis], gone.numpy())
    for row, absent in constants.absent:
        np.logical_and.at(removable, row, absent.numpy())
    return Candidates(spaces, removable, np.sqrt(energy), _derived_channels(spaces, constants))


def _derived_channels(spaces: ChannelSpaces, constants: Constants) -> Ids:
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for layer, positions in constants.derived.items():
        if (layer, "in") in spaces.ids:  # in a depthwise conv both are one channel
            outputs, inputs = positions.numpy().T
            pairs.append(np.stack([spaces.ids[layer, "out"][outputs], spaces.ids[layer, "in"][inputs]], axis=1))
    return np.concatenate(pairs)


def make_plan(candidates: Candidates, granularity: Granularity = 1) -> KeepPlan:
    """Keep what must stay, and in each space the strongest of the rest until its count is a multiple of `granularity`.

    Every space, result and declared tensor keeps at least one channel; no space keeps more than it has.
    """
    keep = ~candidates.removable
    constants, origins = candidates.derived.T
    rescued: list[str] = []
    while True:
        rescued += _round_up_(keep, candidates, granularity)
        bound = constants[keep[origins] & ~keep[constants]]
        keep[bound] = True
        empty = [row for row in candidates.spaces.rows if not keep[row].any()]
        for row in empty:
            keep[row[np.argmax(candidates.strength[row])]] = True
        if not len(bound) and not empty:
            return KeepPlan(candidates.spaces, keep, tuple(dict.fromkeys(rescued)))


def _round_up_(keep: Bools, candidates: Candidates, granularity: Granularity) -> list[str]:
    """Keep more of each space's strongest channels, up to its multiple; return the names of the spaces that kept none before."""
    empty = []
    for space in candidates.spaces.spaces:
        alive = int(keep[space.channels].sum())
        multiple = granularity if isinstance(granularity, int) else granularity.get(space.name, 1)
        wanted = min(len(space.channels), -(-max(alive, 1) // multiple) * multiple)
        if alive == 0:
            empty.append(space.name)
        if wanted > alive:
            idle = space.channels[~keep[space.channels]]
            strongest = idle[np.argsort(-candidates.strength[idle], kind="stable")]
            keep[strongest[: wanted - alive]] = True
    return empty
