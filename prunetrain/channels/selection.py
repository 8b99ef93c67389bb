"""Which channels go: from dead slices to a KeepPlan.

`union` (the paper's): every producer filter and every consumer slice of the channel is dead. `either`: every consumer can do without
the channel, because its slice is dead or because what arrives is a constant it can absorb (`constants.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunetrain.channels.constants import Constants
from prunetrain.channels.slices import LayerSlices
from prunetrain.channels.spaces import Axis, ChannelSpaces, Ids, Role

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """What may be cut: for every channel id, whether it is removable, and how strong (the norm of all its slices).

    `derived` (n, 2): channels that are constants, and channels that these are computed from. The first of a pair goes only together with the
    second: in training the second feels, through the first, what the first is used for.
    """

    spaces: ChannelSpaces
    removable: Bools
    strength: npt.NDArray[np.float64]
    derived: Ids


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

    @property
    def cuts_anything(self) -> bool:
        return not self.keep.all()


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
    derived = [np.empty((0, 2), dtype=np.int64)]
    for axis in spaces.axes(Role.PRODUCER):
        if axis[0] in slices:
            found = slices[axis[0]]
            np.add.at(energy, spaces.ids[axis], found.filter_norms.double().numpy() ** 2)
            if criterion == "union":
                np.logical_and.at(removable, spaces.ids[axis], found.dead.all(1).numpy())
    for axis in spaces.axes(Role.CONSUMER):
        found = slices[axis[0]]
        np.add.at(energy, spaces.ids[axis], found.input_norms.double().numpy() ** 2)
        consumer = constants.consumers[axis[0]]
        gone = found.dead.all(0) if criterion == "union" else consumer.expendable
        np.logical_and.at(removable, spaces.ids[axis], gone.numpy())
        outputs, inputs = consumer.derived.numpy().T
        derived.append(np.stack([spaces.ids[axis[0], "out"][outputs], spaces.ids[axis][inputs]], axis=1))
    return Candidates(spaces, removable, np.sqrt(energy), np.concatenate(derived))


def make_plan(candidates: Candidates, granularity: int = 1) -> KeepPlan:
    """Keep what must stay, and of the rest the strongest channels of each space until its count is a multiple of `granularity`.

    A space keeps at least one channel, and never more than it has.
    """
    keep = ~candidates.removable
    rescued: list[str] = []
    while True:
        for space in candidates.spaces.spaces:
            alive = int(keep[space.channels].sum())
            wanted = min(len(space.channels), -(-max(alive, 1) // granularity) * granularity)
            if alive == 0:
                rescued.append(space.name)
            if wanted > alive:
                idle = space.channels[~keep[space.channels]]
                strongest = idle[np.argsort(-candidates.strength[idle], kind="stable")]
                keep[strongest[: wanted - alive]] = True
        constants, origins = candidates.derived.T
        bound = constants[keep[origins] & ~keep[constants]]
        if not len(bound):
            return KeepPlan(candidates.spaces, keep, tuple(rescued))
        keep[bound] = True
