"""Which channels go: from dead slices to a KeepPlan.

`union` (the paper's): every producer filter and every consumer slice of the channel is dead. `either`: every consumer can do without
the channel, because its slice is dead or because what arrives is a constant it can absorb (`constants.py`).
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
"""What the number of channels of every space is a multiple of: one number, or one by the space's name, 1 where a name is not there."""

KEEP_ALL = 1_000_000
"""A granularity at which nothing is cut, as a space never keeps more than it has.

A number, so that it needs no case of its own where counts are rounded, and stands beside the other multiples in the file of timings.
"""


def commonest(granularity: Granularity) -> int:
    """The number that most spaces are rounded to, where only one number will do; 1 where they keep all."""
    if not isinstance(granularity, int):
        counts = Counter(granularity.values())
        granularity = max(counts, key=lambda multiple: (counts[multiple], multiple), default=1)
    return granularity if granularity < KEEP_ALL else 1


@dataclass(frozen=True)
class Candidates:
    """What may be cut: for every channel id, whether it is removable, and how strong (the norm of all its slices).

    `derived` (n, 2): channels that are constants, and channels that these are computed from. The first of a pair goes only together with
    the second (`Constants.derived`). `rows`: the channels of each result of the network, none of which may lose all.
    """

    spaces: ChannelSpaces
    removable: Bools
    strength: npt.NDArray[np.float64]
    derived: Ids
    rows: tuple[Ids, ...] = ()

    @classmethod
    def chosen(cls, spaces: ChannelSpaces, removable: Bools, strength: npt.NDArray[np.float64]) -> "Candidates":
        """Channels that may go whatever they compute (`removal.py`); those of frozen spaces may not."""
        return cls(spaces, removable & ~spaces.frozen_channels(), strength, np.empty((0, 2), dtype=np.int64), _rows(spaces))


@dataclass(frozen=True)
class KeepPlan:
    """Which channels stay. `keep[id]` per channel; `rescued` names spaces that were all dead and keep their strongest channels."""

    spaces: ChannelSpaces
    keep: Bools
    rescued: tuple[str, ...] = ()

    def kept(self, axis: Axis) -> npt.NDArray[np.int64]:
        """The surviving positions of an axis, sorted."""
        return np.flatnonzero(self.keep[self.spaces.ids[axis]])

    def counts(self) -> dict[str, tuple[int, int]]:
        """For every space by name: channels kept, channels before."""
        return {space.name: (int(self.keep[space.channels].sum()), len(space.channels)) for space in self.spaces.spaces}


def find_candidates(spaces: ChannelSpaces, slices: Mapping[str, LayerSlices], constants: Constants, criterion: str) -> Candidates:
    """The channels that a criterion lets go.

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
    for layer, absent in constants.averaged.items():
        if (layer, "features") in spaces.ids:
            np.logical_and.at(removable, spaces.ids[layer, "features"], absent.numpy())
    return Candidates(spaces, removable, np.sqrt(energy), _derived_channels(spaces, constants), _rows(spaces))


def _rows(spaces: ChannelSpaces) -> tuple[Ids, ...]:
    """The sets of channels of all results, each once."""
    rows = {}
    for grid in {id(grid): grid for grid in spaces.values}.values():
        row = np.unique(grid)
        rows[row.tobytes()] = row
    return tuple(rows.values())


def _derived_channels(spaces: ChannelSpaces, constants: Constants) -> Ids:
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for layer, positions in constants.derived.items():
        if (layer, "in") in spaces.ids:  # those of a depthwise conv are one channel
            outputs, inputs = positions.numpy().T
            pairs.append(np.stack([spaces.ids[layer, "out"][outputs], spaces.ids[layer, "in"][inputs]], axis=1))
    return np.concatenate(pairs)


def make_plan(candidates: Candidates, granularity: Granularity = 1) -> KeepPlan:
    """Keep what must stay, and of the rest the strongest channels of each space until its count is a multiple of `granularity`.

    A space keeps at least one channel, and so does every result; none keeps more than it has.
    """
    keep = ~candidates.removable
    constants, origins = candidates.derived.T
    rescued: list[str] = []
    while True:
        rescued += _round_up_(keep, candidates, granularity)
        bound = constants[keep[origins] & ~keep[constants]]
        keep[bound] = True
        empty = [row for row in candidates.rows if not keep[row].any()]
        for row in empty:
            keep[row[np.argmax(candidates.strength[row])]] = True
        if not len(bound) and not empty:
            return KeepPlan(candidates.spaces, keep, tuple(dict.fromkeys(rescued)))


def _round_up_(keep: Bools, candidates: Candidates, granularity: Granularity) -> list[str]:
    """Add each space's strongest channels to those kept; returns the names of the spaces of which none was kept."""
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
