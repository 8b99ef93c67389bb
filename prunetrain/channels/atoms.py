"""Atoms: numbers that a walk over a network (`walk.py`) gives to the elements of its values, and what it records about them.

Elements of one channel have the same atom, or atoms that are united. Grids (`grids.py`) hold them.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunetrain.channels.grids import broadcast, varying

Axis: TypeAlias = tuple[str, str]
"""A layer or declared tensor, and its axis: "in", "out" or "features"."""


class Role(Enum):
    """What a layer does to the channels of an axis."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
    CARRIER = "carrier"


@dataclass
class Atoms:
    """What a walk finds: the atoms (n,) of each of `axes`; `united` pairs (n, 2) that are one channel; `together` atoms of one space.

    `frozen` has atoms, and why their spaces may not be cut. `values` has the grid of each value and the operation that made it, `declared`
    a grid for each declared tensor that has channels. `padding` has the atoms that each padding of channels adds. `reductions` has the
    dimension of channels that a step reduces over, by the number of its value.
    """

    count: int = 0
    axes: dict[Axis, npt.NDArray[np.int64]] = field(default_factory=dict)
    roles: dict[Axis, Role] = field(default_factory=dict)
    united: list[npt.NDArray[np.int64]] = field(default_factory=list)
    together: list[npt.NDArray[np.int64]] = field(default_factory=list)
    frozen: list[tuple[npt.NDArray[np.int64], str]] = field(default_factory=list)
    padding: list[npt.NDArray[np.int64]] = field(default_factory=list)
    values: list[tuple[Tensor, str]] = field(default_factory=list)
    declared: dict[str, Tensor] = field(default_factory=dict)
    reductions: dict[int, int] = field(default_factory=dict)

    def fresh(self, count: int) -> Tensor:
        """New atoms that make one space."""
        start = self.count
        self.count += count
        atoms = torch.arange(start, start + count)
        self.together.append(atoms.numpy())
        return atoms

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Make the atoms at each position of two grids one channel; the grids are broadcast."""
        both = broadcast(left, right)
        self.united.append(torch.stack([grid.reshape(-1) for grid in both], 1).numpy())

    def along(self, grid: Tensor, dim: int, size: int, why: str) -> Tensor:
        """Return the atoms along a dimension, (size,), after uniting each with those at its position in the other dimensions.

        If the grid changes only in other dimensions, it is frozen, and so is the single new atom that is returned.
        """
        others = [d for d in varying(grid) if d != dim % grid.dim()]
        if others and grid.shape[dim] == 1:
            self.freeze(grid, why)
            fresh = self.fresh(1)
            self.freeze(fresh, why)
            return fresh.expand(size)
        return self.tied(grid, others).reshape(-1).expand(size)

    def tied(self, grid: Tensor, dims: list[int]) -> Tensor:
        """Unite everything along some dimensions and return the smaller grid."""
        first = grid
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        if dims:
            self.unite(grid, first)
        return first

    def put(self, name: str, axis: str, role: Role, atoms: Tensor) -> Tensor:
        """Put atoms on an axis and return the axis's atoms; a second call of a layer is united with the first."""
        if (name, axis) in self.axes:
            self.unite(torch.from_numpy(self.axes[name, axis]), atoms)
        else:
            self.axes[name, axis], self.roles[name, axis] = atoms.contiguous().numpy(), role
        return torch.from_numpy(self.axes[name, axis])

    def produced(self, name: str, count: int, *, copies: int = 1) -> Tensor:
        """Return the atoms of a layer's outputs, (count * copies,): new at its first call, and the same in each copy."""
        if (name, "out") in self.axes:
            return torch.from_numpy(self.axes[name, "out"])
        return self.put(name, "out", Role.PRODUCER, self.fresh(count).repeat(copies))

    def freeze(self, grid: Tensor, why: str) -> None:
        """Record that no channel of the grid's spaces may be cut, and why."""
        self.frozen.append((np.unique(grid.numpy()), why))
