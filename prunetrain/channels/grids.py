"""Grids: tensors that say something about every element of a value, such as which channel it belongs to.

A grid has the value's rank, at a batch size of 1; a dimension along which nothing changes has size 1. So the grid of an image is
(1, C, 1, 1), and an operation that only moves elements (view, permute, cat, shuffle) is followed by running it on the grid.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from prunetrain.graph.function_shapes import dims_of
from prunetrain.graph.layergraph import Attribute, BatchSize, LayerGraph, Operand, Step, Value
from prunetrain.graph.shapes import infer_shapes
from prunetrain.graph.windows import Shape


def compress(full: Tensor) -> Tensor:
    """Return the grid of a tensor that has one entry per element."""
    for dim, size in enumerate(full.shape):
        if size > 1 and (full.stride(dim) == 0 or bool((full == full.narrow(dim, 0, 1)).all())):
            full = full.narrow(dim, 0, 1)
    return full.contiguous()


def broadcast(*grids: Tensor) -> tuple[Tensor, ...]:
    """Expand grids to the same size."""
    return tuple(torch.broadcast_tensors(*grids))  # type: ignore[no-untyped-call]


def varying(grid: Tensor) -> list[int]:
    """The dimensions along which a grid changes."""
    return [dim for dim, size in enumerate(grid.shape) if size > 1]


def aligned(grid: Tensor, rank: int) -> Tensor:
    """Return a grid with a higher rank, by the rules of broadcasting."""
    return grid.reshape((1,) * (rank - grid.dim()) + tuple(grid.shape))


def placed(row: Tensor, dim: int, rank: int) -> Tensor:
    """Return a grid that changes along one dimension only."""
    return row.view(*(1,) * dim, -1, *(1,) * (rank - dim - 1))


class Shapes:
    """The shapes of a graph's values and declared tensors, at a batch size of 1."""

    def __init__(self, graph: LayerGraph) -> None:
        self.values = infer_shapes(graph)
        self.declared = {tensor.name: tensor.shape for tensor in graph.declared}
        self._graph = graph

    def of(self, operand: Operand) -> Shape:
        """The shape of a result or declared tensor."""
        return self.values[operand.index] if isinstance(operand, Value) else self.declared[operand.name]

    def grows_with_batch(self, operand: Operand, dim: int) -> bool:
        """Whether a dimension grows with the batch size."""
        return isinstance(operand, Value) and self._shapes_at_batch_two[operand.index][dim] != self.values[operand.index][dim]

    def same_shape(self, one: Operand, other: Operand) -> bool:
        """Whether two results or declared tensors have the same shape at any batch size."""
        shape = self.of(one)
        return shape == self.of(other) and all(
            self.grows_with_batch(one, dim) == self.grows_with_batch(other, dim) for dim in range(len(shape))
        )

    @cached_property
    def _shapes_at_batch_two(self) -> tuple[Shape, ...]:
        return infer_shapes(self._graph, 2)


class Mover:
    """Runs the moves of a graph (`functions.Family.MOVE`) on grids."""

    def __init__(self, graph: LayerGraph, shapes: Shapes) -> None:
        self._shapes = shapes
        self._indices = {tensor.name: torch.tensor(tensor.values) for tensor in graph.declared if tensor.role == "index"}

    def index(self, name: str) -> Tensor:
        """The positions in an index that the network declares; int64, (n,)."""
        return self._indices[name]

    def is_index(self, operand: object) -> bool:
        """Whether an operand is an index that the network declares."""
        return isinstance(operand, Attribute) and operand.name in self._indices

    def move(self, step: Step, grid_of: Callable[[Operand], Tensor]) -> Tensor:
        """Return the grid of a step's result, given the grids of its operands. Padding is left to the caller (`pads`)."""
        if step.target in ("torch.cat", "torch.stack"):
            return self._joined(step, [grid_of(operand) for operand in step["tensors"]])
        full = grid_of(step["input"]).expand(self._shapes.of(step["input"]))
        arguments = {name: self._plain(argument) for name, argument in step.arguments if name != "input"}
        if step.target == "[:]":
            index = (slice(None),) * (step["dim"] % full.dim()) + (slice(step["start"], step["stop"], step["step"]),)
            return compress(full[index])
        if step.target == "[]":
            return compress(full.select(step["dim"], step["index"]))
        return compress(_FUNCTIONS[step.target](full, **arguments))

    def _joined(self, step: Step, grids: list[Tensor]) -> Tensor:
        """Join without expanding dimensions along which no operand changes."""
        shapes = [self._shapes.of(operand) for operand in step["tensors"]]
        stack = step.target == "torch.stack"
        dim = step["dim"] % (len(shapes[0]) + stack)
        same = [all(grid.shape[d] == 1 for grid in grids) and (stack or d != dim) for d in range(len(shapes[0]))]
        full = [
            grid.expand([1 if constant else size for constant, size in zip(same, shape, strict=True)])
            for grid, shape in zip(grids, shapes, strict=True)
        ]
        return compress(torch.stack(full, dim) if stack else torch.cat(full, dim))

    def _plain(self, argument: object) -> Any:
        match argument:
            case Attribute(name):
                return self._indices[name]
            case BatchSize(value):
                return self._shapes.of(value)[0]
            case tuple():
                return tuple(map(self._plain, argument))
        return argument


def pads(step: Step, rank: int) -> dict[int, tuple[int, int]]:
    """What `F.pad` adds before and after each dimension that it pads."""
    amounts = step["pad"]
    pairs = zip(amounts[::2], amounts[1::2], strict=True)
    return {rank - 1 - number: pair for number, pair in enumerate(pairs) if pair != (0, 0)}


def pads_one_channel(grid: Tensor, shape: Shape, dim: int) -> bool:
    """Whether a dimension that `F.pad` pads is that of the channels, although the grid does not change along it: there is only one."""
    return shape[dim] == 1 and not varying(grid) and dim == (1 if len(shape) in (2, 4) else len(shape) - 1)


def reduced(grid: Tensor, step: Step) -> Tensor:
    """The grid after a reduction over dimensions along which it does not change."""
    dims = dims_of(tuple(range(grid.dim())) if step["dim"] is None else step["dim"], grid.dim())
    return grid if step["keepdim"] else grid.squeeze(dims)


_FUNCTIONS: Final[Mapping[str, Callable[..., Tensor]]] = {
    "torch.flatten": torch.flatten,
    "torch.unflatten": torch.unflatten,
    "torch.reshape": torch.reshape,
    "torch.broadcast_to": torch.broadcast_to,
    "torch.permute": torch.permute,
    "torch.transpose": torch.transpose,
    "torch.squeeze": torch.squeeze,
    "torch.unsqueeze": torch.unsqueeze,
    "torch.roll": torch.roll,
    "torch.flip": lambda full, dims: torch.flip(full, (dims,) if isinstance(dims, int) else dims),
    "torch.index_select": torch.index_select,
    "F.pixel_unshuffle": F.pixel_unshuffle,
    "F.pixel_shuffle": F.pixel_shuffle,
    "F.channel_shuffle": F.channel_shuffle,
}
