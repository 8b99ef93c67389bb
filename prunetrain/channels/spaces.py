"""Channel spaces: which positions of which tensors belong together and can only be cut together.

In: a LayerGraph. Out: for every channel axis of every layer, the *channel id* of each position. A channel is one id: all positions that
carry it go or stay together. `walk.py` finds the ids.

Worked example, conv1 (3 -> 16), bn1, then `x + conv2(x)` and fc after flattening 16x2x2:

    ids["conv1", "out"]     0 1 2 ... 15      fresh, then united with conv2's outputs by the addition
    ids["bn1", "features"]  0 1 2 ... 15      passed on
    ids["conv2", "out"]     0 1 2 ... 15
    ids["fc", "in"]         0 0 0 0 1 1 1 1 ...   each channel fills four features
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from prunetrain.channels.atoms import Axis, Role
from prunetrain.channels.components import components
from prunetrain.channels.walk import Walk
from prunetrain.graph.layergraph import LayerGraph, Operand, Value

Ids: TypeAlias = npt.NDArray[np.int64]

__all__ = ["Axis", "ChannelSpace", "ChannelSpaces", "Ids", "Role", "find_spaces"]


@dataclass(frozen=True)
class ChannelSpace:
    """Channels whose producers are tied to each other, named after the first producer.

    `frozen` says why the space may not be cut; "" if it may.
    """

    name: str
    channels: Ids
    members: Mapping[Role, tuple[str, ...]]
    frozen: str = ""

    def __str__(self) -> str:
        count = len(self.channels)
        parts = [f"{count} channel{'s' if count > 1 else ''}"]
        parts += [f"{role.value}{'s' if len(names) > 1 else ''} {', '.join(names)}" for role, names in self.members.items() if names]
        return f"{self.name}: {'; '.join(parts)}" + (f"; frozen: {self.frozen}" if self.frozen else "")


@dataclass(frozen=True)
class ChannelSpaces:
    """The channels of a network.

    `ids[axis]` has one entry per position of the axis; `dims[tensor]` is the dimension of a declared tensor along which its channels lie.
    `values[i]` is the grid of `Value(i)` (`grids.py`); it changes along at most one dimension unless it is frozen. `rows` has the channels
    of each result and each declared tensor, without duplicates; none of these may lose all its channels. `reductions[i]` is the dimension
    of the input's channels that the step of `Value(i)` reduces over, if it does (`reductions.py`). Ids run from 0 to
    `num_channels` - 1. Every id is in exactly one space; `space_of[id]` is its number in `spaces`.
    """

    num_channels: int
    ids: Mapping[Axis, Ids]
    roles: Mapping[Axis, Role]
    dims: Mapping[str, int]
    values: tuple[Ids, ...]
    rows: tuple[Ids, ...]
    reductions: Mapping[int, int]
    spaces: tuple[ChannelSpace, ...]
    space_of: Ids

    def axes(self, role: Role) -> list[Axis]:
        """The axes that play a role."""
        return [axis for axis, r in self.roles.items() if r is role]

    def channels_of(self, operand: Operand) -> Ids:
        """The channels of a result or declared tensor, by their positions; none for a declared tensor that has none in `dims`."""
        if isinstance(operand, Value):
            return self.values[operand.index].reshape(-1)
        return self.ids.get((operand.name, "features"), np.empty(0, dtype=np.int64))

    def frozen_channels(self) -> npt.NDArray[np.bool_]:
        """For every channel, whether it must stay."""
        frozen = np.array([bool(space.frozen) for space in self.spaces], dtype=bool)
        return frozen[self.space_of]


def find_spaces(graph: LayerGraph) -> ChannelSpaces:
    """Find the channel spaces of a network.

    Raises:
        ShapeError: if the shapes of the graph do not fit together.
    """
    atoms = Walk(graph).run()
    united = components(atoms.count, atoms.united)
    numbers, ids_of = np.unique(united, return_inverse=True)  # ids_of[atom] is the channel that it became part of
    frozen = [(ids_of[found], why) for found, why in atoms.frozen]
    if atoms.padding:  # tied to nothing but other padding: what an earlier cut put in front of LayerNorm
        padding = np.bincount(ids_of[np.concatenate(atoms.padding)], minlength=len(numbers))
        frozen.append((np.flatnonzero((padding > 0) & (padding == np.bincount(ids_of))), "padding"))
    known: dict[int, Ids] = {}  # values that pass a grid on share it, so it is computed once
    for grid, target in atoms.values:
        if id(grid) in known:
            continue
        known[id(grid)], crossed = _one_dimension(ids_of[grid.numpy()])
        if crossed:
            frozen.append((np.unique(known[id(grid)]), f"{target} lays its channels out over several dimensions"))
    values = tuple(known[id(grid)] for grid, _ in atoms.values)
    rows = [np.unique(grid) for grid in known.values()]
    axes = {axis: ids_of[found] for axis, found in atoms.axes.items()}
    roles = dict(atoms.roles)
    dims: dict[str, int] = {}
    for name, grid in atoms.declared.items():
        ids, crossed = _one_dimension(ids_of[grid.numpy()])
        rows.append(np.unique(ids))
        if crossed:
            frozen.append((rows[-1], f"{name} has its channels in several dimensions"))
        elif ids.size > 1:
            dims[name] = int(np.argmax(ids.shape))
            axes[name, "features"], roles[name, "features"] = ids.ravel(), Role.CARRIER
    ties = [np.stack([np.full(len(ids), ids[0]), ids], 1) for ids in (ids_of[found] for found in atoms.together)]  # each to the first
    _, space_of = np.unique(components(len(numbers), ties), return_inverse=True)
    distinct = tuple({row.tobytes(): row for row in rows}.values())
    spaces = _spaces(axes, roles, space_of, frozen)
    return ChannelSpaces(len(numbers), axes, roles, dims, values, distinct, atoms.reductions, spaces, space_of)


def _one_dimension(ids: Ids) -> tuple[Ids, bool]:
    """Compress a grid of final ids; also return whether it changes along more than one dimension."""
    for dim, size in enumerate(ids.shape):
        if size > 1:
            first = ids.take([0], axis=dim)
            if (ids == first).all():
                ids = first
    return ids, sum(size > 1 for size in ids.shape) > 1


def _spaces(
    axes: Mapping[Axis, Ids], roles: Mapping[Axis, Role], space_of: Ids, frozen: Sequence[tuple[Ids, str]]
) -> tuple[ChannelSpace, ...]:
    """The spaces in the order of their numbers; the first of several reasons to be frozen counts, and repeated names get a number."""
    count = int(space_of.max()) + 1
    members: list[dict[Role, list[str]]] = [{role: [] for role in Role} for _ in range(count)]
    for (name, axis), ids in axes.items():
        for space in np.unique(space_of[ids]).tolist():
            found = members[space][roles[name, axis]]
            if name not in found:
                found.append(name)
    reasons: dict[int, str] = {}
    for ids, why in frozen:
        for space in np.unique(space_of[ids]).tolist():
            reasons.setdefault(space, why)
    order = np.argsort(space_of, kind="stable")
    channels = np.split(order, np.cumsum(np.bincount(space_of, minlength=count))[:-1])
    taken: Counter[str] = Counter()
    spaces = []
    for number, found_members in enumerate(members):
        name = _name_of(found_members) if number else "input"
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name} ({taken[name]})"
        names = {role: tuple(found) for role, found in found_members.items()}
        spaces.append(ChannelSpace(name, channels[number], names, reasons.get(number, "")))
    return tuple(spaces)


def _name_of(members: Mapping[Role, list[str]]) -> str:
    makers = members[Role.PRODUCER] or members[Role.CARRIER]
    return makers[0] if makers else f"input of {members[Role.CONSUMER][0]}" if members[Role.CONSUMER] else "no layer"
