"""The LayerGraph: a network as plain values. It holds everything the tool knows about a network; a network file holds the same.

A graph has layers (attribute name, torch.nn class, constructor arguments), declared tensors, and steps: the straight-line forward pass.
Results have no names: `Value(0)` is the network's input, `Value(i)` the result of step `i - 1`.
"""

import keyword
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Final, TypeAlias

from prunetrain.graph.catalog import FILE_NAMES, LAYERS, RESERVED_NAMES, LayerKind
from prunetrain.graph.functions import FUNCTIONS
from prunetrain.graph.signatures import Kind, Literal, Signature, bind, is_literal


@dataclass(frozen=True, order=True)
class Value:
    """The result of step `index - 1`; index 0 is the network's input."""

    index: int


@dataclass(frozen=True)
class Attribute:
    """`self.<name>`: a declared tensor, or `training`."""

    name: str


@dataclass(frozen=True)
class BatchSize:
    """`<value>.shape[0]`: the number of images in a batch, or of rows made from them. Used in a SHAPE."""

    value: Value


TRAINING = Attribute("training")
Operand: TypeAlias = Value | Attribute
"""A tensor that a step reads: a result, or a declared tensor."""

Argument: TypeAlias = "Literal | Value | Attribute | BatchSize | tuple[Argument, ...]"


class GraphError(ValueError):
    """An invalid graph; `part` is the number of the step, or the name of the layer or tensor, at fault; None for the whole graph."""

    def __init__(self, message: str, part: int | str | None = None) -> None:
        super().__init__(message)
        self.part = part


@dataclass(frozen=True)
class Layer:
    """A torch.nn layer with parameters or buffers; `arguments` in the constructor's order, without defaults.

    The weights of a layer that is not `trainable` stay as they are in training: `nn.Conv2d(...).requires_grad_(False)`.
    """

    name: str
    kind: str
    arguments: tuple[tuple[str, Literal], ...]
    trainable: bool = True

    @classmethod
    def make(cls, name: str, kind: str, **arguments: Literal) -> "Layer":
        """Make a layer, with its arguments checked and in canonical form.

        Raises:
            ValueError: for an unknown class or argument, or a value that the argument does not take.
        """
        if kind not in LAYERS:
            raise ValueError(f"nn.{kind} is not a layer that prunetrain knows")
        return cls(name, kind, bind(LAYERS[kind], arguments.items()))  # type: ignore[arg-type]

    def __getitem__(self, argument: str) -> Any:
        """Return an argument's value, or its default if it is not given."""
        return dict(self.arguments).get(argument, LAYERS[self.kind][argument].default)

    def with_arguments(self, **changes: Literal) -> "Layer":
        """Return the layer with some arguments changed."""
        return replace(Layer.make(self.name, self.kind, **{**dict(self.arguments), **changes}), trainable=self.trainable)

    @property
    def signature(self) -> LayerKind:
        return LAYERS[self.kind]

    @property
    def is_convolution(self) -> bool:
        return self.kind in ("Conv1d", "Conv2d", "ConvTranspose2d")

    @property
    def conv_groups(self) -> int:
        """How many groups a convolution has; 1 for other layers."""
        return int(self["groups"]) if self.is_convolution else 1

    @property
    def passes_groups(self) -> bool:
        """Whether it is a grouped convolution that is cut by whole groups (`loses_whole_groups`)."""
        groups = self.conv_groups
        return groups > 1 and self.kind != "ConvTranspose2d" and loses_whole_groups(groups, self["in_channels"])


def loses_whole_groups(groups: int, in_channels: int) -> bool:
    """Whether a convolution is cut by whole groups: it has several, and at least as many as input channels in each.

    Otherwise all its groups lose the same input channels, and the same output channels.
    """
    return groups > 1 and groups * groups >= in_channels


FROZEN: Final = ".requires_grad_(False)"
"""What follows a layer's constructor in a network file if the layer is not trainable."""

ROLES: Final = ("parameter", "buffer", "index")
DTYPES: Final = ("float32", "int64", "bool")


@dataclass(frozen=True)
class Declared:
    """A tensor that the network declares directly, by its role.

    * "parameter": `nn.Parameter(torch.zeros(<shape>))`, with `requires_grad=False` if it is not `trainable`
    * "buffer": `nn.Buffer(torch.zeros(<shape>))`; its values are in the state dict, of type `dtype`
    * "index": `nn.Buffer(torch.tensor([<values>]), persistent=False)`: positions, which are architecture and so written in the file

    Raises:
        GraphError: for a shape, role, dtype or values that none of these allows.
    """

    name: str
    shape: tuple[int, ...]
    role: str = "parameter"
    dtype: str = "float32"
    values: tuple[int, ...] = ()
    trainable: bool = True

    def __post_init__(self) -> None:
        if self.role not in ROLES or self.dtype not in DTYPES or (self.role == "parameter" and self.dtype != "float32"):
            raise GraphError(f"self.{self.name} cannot be a {self.role} of {self.dtype}", self.name)
        if not self.trainable and self.role != "parameter":
            raise GraphError(f"self.{self.name}: only a parameter can be frozen", self.name)
        if any(size < 1 for size in self.shape):
            raise GraphError(f"self.{self.name} needs sizes of at least 1", self.name)
        if (self.role == "index") != bool(self.values):
            raise GraphError(f"self.{self.name}: an index needs positions, and no other role takes any", self.name)
        if self.role == "index" and (self.shape != (len(self.values),) or self.dtype != "int64" or min(self.values) < 0):
            raise GraphError(f"self.{self.name} needs int64 positions from 0, as many as its shape says", self.name)

    @classmethod
    def index(cls, name: str, values: tuple[int, ...]) -> "Declared":
        """Declare positions along a dimension."""
        return cls(name, (len(values),), "index", "int64", values)


@dataclass(frozen=True)
class Step:
    """One call of the forward pass. `target` is `self.<layer>`, a function of the catalog such as `F.relu`, or an operator such as `+`."""

    target: str
    arguments: tuple[tuple[str, Argument], ...]

    @classmethod
    def make(cls, target: str, **arguments: Argument) -> "Step":
        """Make a step, with its arguments checked and in canonical form.

        Raises:
            ValueError: for an unknown function or argument, a value that the argument does not take, or a step that reads no result.
        """
        signature = signature_of(target)
        step = cls(target, bind(signature, arguments.items()))  # type: ignore[arg-type]
        for name, argument in step.arguments:
            if not is_literal(argument) and not _fits(signature[name].kind, argument):
                raise ValueError(f"{name} must be {signature[name].expected}")
        if not step.inputs() and not any(attribute != TRAINING.name for attribute in step.attributes()):
            raise ValueError("must read a result of the network")
        return step

    def __getitem__(self, argument: str) -> Any:
        return dict(self.arguments).get(argument, signature_of(self.target)[argument].default)

    @property
    def layer(self) -> str | None:
        """The name of the layer that is called, or None for a function."""
        return self.target[5:] if self.target.startswith("self.") else None

    def inputs(self) -> tuple[Value, ...]:
        """The results that the step reads, in order."""
        return tuple(
            found.value if isinstance(found, BatchSize) else found for found in self._parts() if isinstance(found, Value | BatchSize)
        )

    def operands(self) -> tuple[Operand, ...]:
        """The tensors that the step reads, in order: results and declared tensors."""
        return tuple(found for found in self._parts() if isinstance(found, Value | Attribute) and found != TRAINING)

    def attributes(self) -> tuple[str, ...]:
        """The attributes of the network that the step reads."""
        return tuple(found.name for found in self._parts() if isinstance(found, Attribute))

    def _parts(self) -> Iterator[object]:
        for _, argument in self.arguments:
            yield from argument if isinstance(argument, tuple) else (argument,)

    def map_values(self, change: Callable[[Value], "Argument"]) -> "Step":
        """The step with every Value replaced."""

        def changed(argument: Argument) -> Argument:
            if isinstance(argument, tuple):
                return tuple(map(changed, argument))
            if isinstance(argument, BatchSize):
                value = change(argument.value)
                return BatchSize(value) if isinstance(value, Value) else argument
            return change(argument) if isinstance(argument, Value) else argument

        return replace(self, arguments=tuple((name, changed(argument)) for name, argument in self.arguments))


def _fits(kind: Kind, argument: object) -> bool:
    """Whether an argument that is not a literal is allowed for a parameter of this kind."""
    match argument:
        case tuple() if kind is Kind.TENSORS:
            return all(isinstance(item, Value) or (isinstance(item, Attribute) and item != TRAINING) for item in argument)
        case tuple() if kind is Kind.SHAPE:
            return all(isinstance(item, BatchSize) or (type(item) is int and (item > 0 or item == -1)) for item in argument)
        case Attribute():
            return (kind is Kind.TRAINING) if argument == TRAINING else kind in (Kind.TENSOR, Kind.OPERAND)
        case Value():
            return kind in (Kind.TENSOR, Kind.OPERAND)
    return False


_LAYER_CALL = FUNCTIONS["F.relu"]  # a layer is called with one tensor, as relu is


def signature_of(target: str) -> Signature:
    """Return the signature of a step's target.

    Raises:
        ValueError: for a function that is not in the catalog.
    """
    if target.startswith("self."):
        return _LAYER_CALL
    if target not in FUNCTIONS:
        raise ValueError(f"{target} is not a function that prunetrain knows")
    return FUNCTIONS[target]


@dataclass(frozen=True)
class LayerGraph:
    """A network: what `parse` reads from a network file and `render` writes to one.

    `input_shape` is (C, H, W), without the batch. `output` is the value that `forward` returns. If it returns several, `extra`
    holds the others, and `auxiliary` those that follow in train mode only. Steps that only `auxiliary` needs run in train mode only.
    `declared` is sorted by first use.

    Raises:
        GraphError: if names clash or cannot be attributes, a step refers to something undefined, or anything is defined but never used.
    """

    class_name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    steps: tuple[Step, ...]
    output: Value
    declared: tuple[Declared, ...] = ()
    extra: tuple[Value, ...] = ()
    auxiliary: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        check_identifier(self.class_name, "class")
        if not self.input_shape or min(self.input_shape) < 1:
            raise GraphError("the input shape needs sizes of at least 1")
        names = [layer.name for layer in self.layers] + [tensor.name for tensor in self.declared]
        for name in names:
            check_identifier(name, "layer")
        if len(set(names)) < len(names):
            raise GraphError(f"{next(n for n in names if names.count(n) > 1)} is defined twice")
        self._check_steps()
        first_read: dict[str, int] = {}
        for step in self.steps:
            for name in step.attributes():
                first_read.setdefault(name, len(first_read))
        object.__setattr__(self, "declared", tuple(sorted(self.declared, key=lambda tensor: first_read[tensor.name])))

    def _check_steps(self) -> None:
        layers, declared = {layer.name for layer in self.layers}, {tensor.name for tensor in self.declared}
        used_values, used_names = {value.index for value in self.outputs}, set()
        for number, step in enumerate(self.steps):
            if step.layer is not None and step.layer not in layers:
                raise GraphError(f"self.{step.layer} is called but not defined", number)
            if step.layer is not None:
                used_names.add(step.layer)
            for attribute in step.attributes():
                if attribute != TRAINING.name and attribute not in declared:
                    raise GraphError(f"self.{attribute} is read but not defined", number)
                used_names.add(attribute)
            for value in step.inputs():
                if not 0 <= value.index <= number:
                    raise GraphError(f"step {number} reads a result that does not exist yet", number)
                used_values.add(value.index)
        if not all(0 <= value.index <= len(self.steps) for value in self.outputs):
            raise GraphError("the output is not a result of the network")
        for number, step in enumerate(self.steps):
            if number + 1 not in used_values:
                raise GraphError(f"the result of {step.target} is never used", number)
        for name in sorted((layers | declared) - used_names):
            raise GraphError(f"self.{name} is never used", name)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Everything that `forward` returns in train mode, in order."""
        return (self.output, *self.extra, *self.auxiliary)

    @cached_property
    def in_training_only(self) -> frozenset[int]:
        """The numbers of the steps that run in train mode only, because nothing but `auxiliary` needs them."""
        needed = {self.output.index, *(value.index for value in self.extra)}
        for number in range(len(self.steps), 0, -1):
            if number in needed:
                needed |= {value.index for value in self.steps[number - 1].inputs()}
        return frozenset(number for number in range(len(self.steps)) if number + 1 not in needed)

    @cached_property
    def known_shapes(self) -> dict[int, tuple[tuple[int, ...], ...]]:
        """The shapes of all values at the batch sizes for which `shapes.infer_shapes` has found them: a graph never changes."""
        return {}

    def layer(self, name: str) -> Layer:
        """Return the layer with this name.

        Raises:
            KeyError: if there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def weight_of(self, step: Step) -> "Declared | None":
        """The declared tensor that the weight of a function such as `F.conv2d` comes from.

        If it is computed from several, this is the largest; of equals a parameter, as a mask may be as large.
        """
        names = {operand.name for operand in self.behind(step["weight"]) if isinstance(operand, Attribute)}
        found = (tensor for tensor in self.declared if tensor.name in names)
        return max(found, key=lambda tensor: (prod(tensor.shape), tensor.role == "parameter"), default=None)

    def behind(self, operand: Operand) -> list[Operand]:
        """All results and declared tensors that a tensor is computed from, itself included, each once."""
        found, seen = [operand], {operand}
        for read in found:
            if isinstance(read, Value) and read.index:
                new = [other for other in dict.fromkeys(self.steps[read.index - 1].operands()) if other not in seen]
                found += new
                seen.update(new)
        return found

    def uses(self) -> dict[Value, list[int]]:
        """Return, for every value, the numbers of the steps that read it (a step twice if it reads the value twice)."""
        uses: dict[Value, list[int]] = {Value(i): [] for i in range(len(self.steps) + 1)}
        for number, step in enumerate(self.steps):
            for value in step.inputs():
                uses[value].append(number)
        return uses

    def results(self) -> Iterator[tuple[Value, Step]]:
        """Yield every step with the value it makes."""
        for number, step in enumerate(self.steps):
            yield Value(number + 1), step


def check_identifier(name: str, what: str) -> None:
    """Refuse names that cannot be attributes of a network.

    Raises:
        GraphError: for a keyword or other non-identifier, a leading underscore, or a name that hides one of torch.nn.Module or the file.
    """
    hidden = name in (RESERVED_NAMES if what == "layer" else FILE_NAMES)
    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or hidden:
        raise GraphError(f"{name!r} cannot name a {what}: choose another name", name if what == "layer" else None)
