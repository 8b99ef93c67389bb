"""Abstract values: what is known about the elements of a result for any images, and how functions transform it.

An element is either unknown or a constant, with one number in eval mode and one in train mode.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from prunetrain.channels.grids import Mover, Shapes, aligned, broadcast, pads, pads_one_channel, placed, reduced, varying
from prunetrain.graph.function_shapes import dims_of
from prunetrain.graph.functions import FAMILY_OF, Family
from prunetrain.graph.layergraph import Attribute, Operand, Step, Value
from prunetrain.graph.windows import Shape


@dataclass(frozen=True)
class Abstract:
    """Three grids (`grids.py`) that fit together: `known` bool; `eval_mode` and `train_mode` float64, meaningful where known."""

    known: Tensor
    eval_mode: Tensor
    train_mode: Tensor

    @classmethod
    def unknown(cls, *shape: int) -> "Abstract":
        """Nothing known, as grids of the given shape."""
        zeros = torch.zeros(shape, dtype=torch.float64)
        return cls(torch.zeros(shape, dtype=torch.bool), zeros, zeros)

    @classmethod
    def nothing(cls, rank: int) -> "Abstract":
        """Nothing known about any element, as grids of this rank with size 1 in every dimension."""
        return cls.unknown(*(1,) * rank)

    @classmethod
    def number(cls, number: Tensor) -> "Abstract":
        """Constants that are the same in both modes."""
        return cls(torch.ones(number.shape, dtype=torch.bool), number, number)

    @property
    def zero(self) -> Tensor:
        """Where the value is zero in both modes."""
        return self.known & (self.eval_mode == 0) & (self.train_mode == 0)

    def same_in_both_modes(self, tolerance: float) -> Tensor:
        """Where the value is the same in both modes."""
        return self.known & ((self.eval_mode - self.train_mode).abs() <= tolerance)

    def only(self, where: Tensor) -> "Abstract":
        """The same value, but known only at `where`."""
        return Abstract(self.known & where, self.eval_mode, self.train_mode)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Abstract":
        """Apply a function to all three grids."""
        return Abstract(change(self.known), change(self.eval_mode), change(self.train_mode))

    def broadcast(self) -> "Abstract":
        """Expand the three grids to the same size."""
        return Abstract(*broadcast(self.known, self.eval_mode, self.train_mode))

    def along(self, dim: int, size: int) -> "Abstract":
        """What is known about each position along a dimension, as grids (size,); nothing, if the value varies in other dimensions."""
        whole = self.broadcast()
        others = [d for d in varying(whole.known) if d != dim % whole.known.dim()]
        if others:
            return Abstract.unknown(size)
        return whole.map(lambda grid: grid.reshape(-1).expand(size))

    def placed(self, dim: int, rank: int) -> "Abstract":
        """The inverse of `along`."""
        return self.map(lambda row: placed(row, dim, rank))


class Functions:
    """Applies the functions of a graph to abstract values.

    Args:
        mover: runs moves.
        shapes: the graph's shapes.
        value_of: returns the abstract value of a result or declared tensor.
        along: returns the dimensions of a result along which its channels lie.
    """

    def __init__(
        self, mover: Mover, shapes: Shapes, value_of: Callable[[Operand], Abstract], along: Callable[[Value], Collection[int]]
    ) -> None:
        self._mover = mover
        self._shapes = shapes
        self._value_of = value_of
        self._along = along

    def result(self, value: Value, step: Step, shape: Shape) -> Abstract:
        """What is known about the result of a step that calls a function."""
        if FAMILY_OF[step.target] is Family.BINARY or step.target == "torch.addcmul":
            return self._binary(step, shape, self._along(value))
        if step.target == "@":
            return self._product(step, shape, self._along(value))
        rule = _RULES.get(step.target) or _FAMILY_RULES.get(FAMILY_OF[step.target])
        return rule(self, step, shape) if rule else Abstract.nothing(len(shape))

    def _source(self, step: Step) -> Abstract:
        return self._value_of(step["input"])

    def _elementwise(self, step: Step, shape: Shape) -> Abstract:
        source = self._source(step)
        function = getattr(torch if step.target.startswith("torch.") else F, step.target.split(".")[1])
        arguments = {name: value for name, value in step.arguments if name != "input"}
        in_eval, in_train = function(source.eval_mode, **arguments), function(source.train_mode, **arguments)
        return Abstract(source.known & in_eval.isfinite() & in_train.isfinite(), in_eval, in_train)

    def _same(self, step: Step, shape: Shape) -> Abstract:
        return self._source(step)

    def _zeros_only(self, step: Step, shape: Shape) -> Abstract:
        source = self._source(step)
        return source.only(source.zero)

    def _if_same_at_all_pixels(self, source: Abstract) -> Abstract:
        """The source if it is the same at every pixel of an image, else nothing known."""
        return Abstract.nothing(source.known.dim()) if {2, 3} & set(varying(source.broadcast().known)) else source

    def _pool(self, step: Step, shape: Shape) -> Abstract:
        source = self._if_same_at_all_pixels(self._source(step))
        if step.target == "F.avg_pool2d" and not (step["padding"] == 0 and not step["ceil_mode"] and step["divisor_override"] is None):
            return source.only(source.zero)
        return source

    def _reduce(self, step: Step, shape: Shape) -> Abstract:
        source = self._source(step).broadcast()
        rank = source.known.dim()
        dims = dims_of(tuple(range(rank)) if step["dim"] is None else step["dim"], rank)
        if step.target == "torch.linalg.vector_norm":
            source = source.only(source.zero)
        elif step.target not in _OF_EQUALS:
            return Abstract.nothing(len(shape))
        if set(dims) & set(varying(source.known)):
            return Abstract.nothing(len(shape))
        count = 1
        for dim in dims if step.target == "torch.sum" else ():
            if self._shapes.grows_with_batch(step["input"], dim):
                return Abstract.nothing(len(shape))
            count *= self._shapes.of(step["input"])[dim]
        source = source.map(lambda grid: reduced(grid, step))
        return Abstract(source.known, source.eval_mode * count, source.train_mode * count)

    def _move(self, step: Step, shape: Shape) -> Abstract:
        read = step["tensors"] if step.target in ("torch.cat", "torch.stack") else (step["input"],)
        whole = {operand: self._value_of(operand).broadcast() for operand in read}

        def moved(which: int) -> Tensor:
            return self._mover.move(step, lambda operand: _grids(whole[operand])[which])

        return Abstract(moved(0), moved(1), moved(2))

    def _pixel_shuffle(self, step: Step, shape: Shape) -> Abstract:
        source = self._if_same_at_all_pixels(self._source(step))
        return self._move(step, shape) if source is self._source(step) else Abstract.nothing(4)

    def _pad(self, step: Step, shape: Shape) -> Abstract:
        """Pad: constant channels stay constant if padded with the same number; channels that the padding adds are constants."""
        source = self._source(step).broadcast()
        if step["mode"] != "constant":
            return source if not set(pads(step, len(shape))) & set(varying(source.known)) else Abstract.nothing(len(shape))
        filling, own = float(step["value"] or 0), self._shapes.of(step["input"])
        for dim, (before, after) in pads(step, len(shape)).items():
            if source.known.shape[dim] == 1 and not pads_one_channel(source.known, own, dim):
                source = source.only((source.eval_mode == filling) & (source.train_mode == filling))
                continue
            if before < 0 or after < 0:
                return Abstract.nothing(len(shape))
            sizes = list(source.known.shape)
            around = []
            for count in (before, after):
                sizes[dim] = count
                around.append(Abstract.number(torch.full(sizes, filling, dtype=torch.float64)))
            parts = (around[0], source, around[1])
            source = Abstract(*(torch.cat([_grids(part)[i] for part in parts], dim) for i in range(3)))
        return source

    def _operands(self, step: Step, shape: Shape, along: Collection[int]) -> Iterator[Abstract]:
        """The operands of a step, in order and in the result's rank.

        A result that many channels share (such as a mask over pixels) gets gradients from all of them, constants included, so it counts as
        unknown.
        """
        rank = len(shape)
        for name, _ in step.arguments:
            operand = step[name]
            if isinstance(operand, Value | Attribute):
                sizes = (1,) * (rank - len(self._shapes.of(operand))) + self._shapes.of(operand)
                if isinstance(operand, Value) and any(sizes[dim] < shape[dim] for dim in along):
                    yield Abstract.nothing(rank)
                else:
                    yield self._value_of(operand).map(lambda grid: aligned(grid, rank))
            else:
                yield Abstract.number(torch.full((1,) * rank, float(operand), dtype=torch.float64))

    def _binary(self, step: Step, shape: Shape, along: Collection[int]) -> Abstract:
        operands = list(self._operands(step, shape, along))
        if step.target == "torch.addcmul":
            return _combined("+", operands[0], _combined("*", *operands[1:]))
        return _combined(step.target, *operands)

    def _product(self, step: Step, shape: Shape, along: Collection[int]) -> Abstract:
        """A matrix product whose channels are rows of the first operand or columns of the second: zeros stay zeros."""
        rank = len(shape)
        if list(along) not in ([rank - 2], [rank - 1]):
            return Abstract.nothing(rank)
        (dim,) = along
        operand = step["input"] if dim == rank - 2 else step["other"]
        zero = self._value_of(operand).along(dim - rank, shape[dim]).zero
        return Abstract.number(torch.zeros(shape[dim], dtype=torch.float64)).only(zero).placed(dim, rank)

    def _index_add(self, step: Step, shape: Shape) -> Abstract:
        dim = step["dim"] % len(shape)
        index = self._mover.index(step["index"].name)
        into = self._value_of(step["input"]).along(dim, shape[dim])
        source = self._value_of(step["source"]).along(dim, len(index))
        known = into.known.clone()
        known[index[~source.known]] = False  # an index may name a position twice
        modes = [torch.index_add(a.contiguous(), 0, index, b) for a, b in zip(_grids(into)[1:], _grids(source)[1:], strict=True)]
        return Abstract(known, modes[0], modes[1]).placed(dim, len(shape))


def _combined(operation: str, a: Abstract, b: Abstract) -> Abstract:
    """What is known about the result of an operation on two values."""
    function: Callable[[Tensor, Tensor], Tensor] = _BINARY[operation]
    known = a.known & b.known
    in_eval, in_train = function(a.eval_mode, b.eval_mode), function(a.train_mode, b.train_mode)
    if operation == "*":
        zero = a.zero | b.zero
        return Abstract(known | zero, torch.where(zero, 0.0, in_eval), torch.where(zero, 0.0, in_train))
    return Abstract(known & in_eval.isfinite() & in_train.isfinite(), in_eval, in_train)


def _grids(abstract: Abstract) -> tuple[Tensor, Tensor, Tensor]:
    return abstract.known, abstract.eval_mode, abstract.train_mode


_OF_EQUALS: Final = frozenset(f"torch.{name}" for name in "mean sum amax amin max min".split())  # whose result for equal numbers is known
_BINARY: Final[dict[str, Any]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "**": torch.pow,
    "torch.maximum": torch.maximum,
    "torch.minimum": torch.minimum,
}
_FAMILY_RULES: Final[dict[Family, Callable[[Functions, Step, Shape], Abstract]]] = {
    Family.ELEMENTWISE: Functions._elementwise,
    Family.RANDOM: Functions._zeros_only,  # in train mode these make constants random
    Family.POOL: Functions._pool,
    Family.REDUCE: Functions._reduce,
    Family.MOVE: Functions._move,
}
_RULES: Final[dict[str, Callable[[Functions, Step, Shape], Abstract]]] = {
    "F.normalize": Functions._zeros_only,
    "F.pad": Functions._pad,
    "F.pixel_shuffle": Functions._pixel_shuffle,
    "torch.Tensor.type_as": Functions._same,
    "torch.index_add": Functions._index_add,
}
