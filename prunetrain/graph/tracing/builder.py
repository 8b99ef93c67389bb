"""Turn calls into steps, keep what stands for every recorded result, and check that each step makes the shape that torch made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from prunetrain.graph.function_shapes import FUNCTION_SHAPES
from prunetrain.graph.layergraph import Argument, Attribute, BatchSize, Operand, Step, Value
from prunetrain.graph.shapes import layer_shape
from prunetrain.graph.tracing.records import (
    BATCH_SIZES,
    BatchDependentInt,
    BatchDependentTensor,
    Call,
    Constant,
    ModelTensor,
    PairedRecording,
    Place,
    Ref,
    Sizes,
)
from prunetrain.graph.tracing.registry import Registry


@dataclass(frozen=True)
class Noise:
    """Random numbers of train mode, one per row: 1 with probability `keep`, else 0; divided by `keep` if `scaled`.

    They are `uniform` until rounded down. `drawn` is the number of the result that they were drawn in, also for values computed from them.
    """

    drawn: int
    keep: float
    scaled: bool = False
    uniform: bool = False


@dataclass(frozen=True)
class UnsupportedResult:
    """A result that no step can make; `reason` completes "reads a tensor that"."""

    reason: str


ConvertedResult: TypeAlias = "Operand | Noise | UnsupportedResult | float | int"
STOCHASTIC_DEPTH = "stochastic depth"  # a step that stands for three, until train and eval mode are merged


@dataclass(frozen=True)
class PlacedStep:
    """A step and its place in the model's code."""

    step: Step
    place: Place


class Builder:
    """The steps of one mode, in the order in which they are added."""

    def __init__(self, traced: PairedRecording, registry: Registry) -> None:
        self.traced = traced
        self.registry = registry
        self.lines: list[PlacedStep] = []
        self.sizes: list[Sizes] = [traced.sizes[0]]
        self.place = Place("", "")
        self.used_random_numbers: set[int] = set()  # `drawn` of the random numbers that something was multiplied by
        self._made: dict[int, ConvertedResult] = {0: Value(0)}

    def convert(self, call: Call, how: Callable[["Builder", Call], Any]) -> None:
        """Add the steps of a call and note what its results are.

        Raises:
            TraceError: if a network file cannot express it.
        """
        try:
            made = how(self, call)
        except ValueError as error:
            raise call.place.error(f"{call.name}: {error}") from None
        results = made if isinstance(made, tuple) else (made,)
        for number, result in zip(call.results, results, strict=True):
            if isinstance(result, Value | Attribute) and self.sizes_of(result) != self.traced.sizes[number]:
                raise call.place.error(f"{call.name} makes a shape that prunetrain did not expect: please report it")
            self._made[number] = result

    def converted(self, leaf: object) -> ConvertedResult:
        """Return what stands for a tensor that a call reads, random numbers included."""
        match leaf:
            case Ref(index):
                return self._made[index]
            case ModelTensor(name):
                return self.registry.declare_tensor(name, self.place)
            case Constant(tensor, repeated):
                row = self.registry.declare_constant(tensor, self.place)
                rest = (-1,) * (tensor.ndim - 1)
                return self.add("torch.broadcast_to", input=row, size=(self.batch_dependent_size(BATCH_SIZES), *rest)) if repeated else row
            case BatchDependentTensor():
                raise ValueError("reads a tensor that depends only on the batch size and does not repeat one row for each image")
        raise ValueError(f"{leaf!r} is not a tensor")

    def tensor(self, leaf: object) -> Operand:
        """Return the result or declared tensor that a call reads.

        Raises:
            ValueError: for anything else.
        """
        made = self.converted(leaf)
        if isinstance(made, Noise):
            raise ValueError("reads random numbers: only dropout and stochastic depth are supported, which multiply by them once")
        if isinstance(made, UnsupportedResult):
            raise ValueError(f"reads a tensor that {made.reason}")
        if not isinstance(made, Value | Attribute):
            raise ValueError("reads a number where a tensor is needed")
        return made

    def optional(self, leaf: object) -> Operand | None:
        """Like `tensor`, but None stays None."""
        return None if leaf is None else self.tensor(leaf)

    def operand(self, leaf: object, other_rank: int = 0) -> Argument:
        """Return a tensor or number that an operator reads. A constant with one element is a number, if it adds no dimension."""
        if isinstance(leaf, Constant) and leaf.tensor.numel() == 1 and leaf.tensor.ndim <= other_rank:
            leaf = leaf.tensor.item()
        if isinstance(leaf, Ref | ModelTensor | Constant | BatchDependentTensor):
            return self.tensor(leaf)
        if isinstance(leaf, bool | int | float):
            return leaf
        if isinstance(leaf, BatchDependentInt):
            raise ValueError(_depends_on_batch("a number", leaf))
        raise ValueError(f"an operator cannot take {leaf!r}")

    def sizes_of(self, leaf: object) -> Sizes:
        """Return the shape of a tensor at both batch sizes."""
        match leaf:
            case Value(index):
                return self.sizes[index]
            case Attribute(name):
                return self.registry.size(name), self.registry.size(name)
            case Ref(index):
                return self.traced.sizes[index]
            case ModelTensor(name):
                shape = tuple(self.registry.tensors[name].shape)
                return shape, shape
            case Constant(tensor, repeated):
                shape = tuple(tensor.shape)
                return ((BATCH_SIZES[0], *shape[1:]), (BATCH_SIZES[1], *shape[1:])) if repeated else (shape, shape)
        return (), ()

    def readers(self, call: Call) -> list[Call]:
        """Return the calls that read a result of a call directly."""
        made = {Ref(number) for number in call.results}
        return [other for other in self.traced.calls if any(isinstance(leaf, Ref) and leaf in made for leaf in other.arguments)]

    def is_integer(self, leaf: object) -> bool:
        """Whether a tensor holds int64 numbers."""
        match leaf:
            case Ref(index):
                return index in self.traced.integers
            case ModelTensor(name):
                return self.registry.tensors[name].dtype == torch.int64
            case Constant(tensor):
                return tensor.dtype == torch.int64
        return False

    def rank(self, leaf: object) -> int:
        """Return how many dimensions a tensor has, 0 for a number."""
        return len(self.sizes_of(leaf)[0])

    def add(self, target: str, **arguments: Any) -> Value:
        """Add a step and return its result.

        Raises:
            ValueError: if the catalog does not have it, or its inputs do not fit.
        """
        for name, value in arguments.items():
            if isinstance(value, BatchDependentInt):
                raise ValueError(_depends_on_batch(name, value))
        shapes: Sizes
        if target == STOCHASTIC_DEPTH:
            step = Step(target, tuple(arguments.items()))
            shapes = self.sizes_of(arguments["input"])
        else:
            step = Step.make(target, **arguments)
            shapes = self._shape(step, 0), self._shape(step, 1)
        self.lines.append(PlacedStep(step, self.place))
        self.sizes.append(shapes)
        return Value(len(self.lines))

    def batch_dependent_size(self, sizes: tuple[int, int]) -> BatchSize:
        """Return a size that depends on the batch, as that of the latest result with as many rows.

        Raises:
            ValueError: if there is none.
        """
        for index in range(len(self.sizes) - 1, -1, -1):
            first, second = self.sizes[index]
            if first[:1] + second[:1] == sizes:
                return BatchSize(Value(index))
        raise ValueError(
            f"a size depends on the batch ({sizes[0]} with {BATCH_SIZES[0]} images) in a way that a network file cannot express"
        )

    def _shape(self, step: Step, which: int) -> tuple[int, ...]:
        def shape_of(operand: Operand) -> tuple[int, ...]:
            return self.sizes_of(operand)[which]

        if step.layer is not None:
            return layer_shape(self.registry.layer_named(step.layer), shape_of(step.operands()[0]))
        return FUNCTION_SHAPES[step.target](step, shape_of)

    def at(self, place: Place) -> None:
        """Set the place of the steps that are added from now on."""
        self.place = place


def _depends_on_batch(what: str, value: BatchDependentInt) -> str:
    return f"{what} depends on the batch size ({value.sizes[0]} with {BATCH_SIZES[0]} images)"
