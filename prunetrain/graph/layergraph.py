"""The LayerGraph: a network as plain values. Everything the tool knows about a network is here, and in the file that says the same.

A graph has layers (attribute name, torch.nn class, constructor arguments), declared tensors, and steps: the straight-line forward pass.
Results have no names: `Value(0)` is the network's input, `Value(i)` the result of step `i - 1`.
"""

import keyword
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from prunetrain.graph.catalog import FILE_NAMES, FUNCTIONS, LAYERS, RESERVED_NAMES, Kind, LayerKind, Literal, Signature, bind


@dataclass(frozen=True, order=True)
class Value:
    """The result of step `index - 1`; index 0 is the network's input."""

    index: int


@dataclass(frozen=True)
class Attribute:
    """`self.<name>`: a declared tensor, or `training`."""

    name: str


TRAINING = Attribute("training")
Argument: TypeAlias = "Literal | Value | Attribute"


class GraphError(ValueError):
    """What is wrong with a graph; `part` is the step (its number), layer or tensor (its name) at fault, None for the whole graph."""

    def __init__(self, message: str, part: int | str | None = None) -> None:
        super().__init__(message)
        self.part = part


@dataclass(frozen=True)
class Layer:
    """A torch.nn layer with parameters or buffers; `arguments` in the constructor's order, without defaults."""

    name: str
    kind: str
    arguments: tuple[tuple[str, Literal], ...]

    @classmethod
    def make(cls, name: str, kind: str, **arguments: Literal) -> "Layer":
        """A layer with its arguments checked and in canonical form.

        Raises:
            ValueError: for an unknown class or argument, or a value that the argument does not take.
        """
        if kind not in LAYERS:
            raise ValueError(f"nn.{kind} is not a layer that prunetrain knows")
        return cls(name, kind, bind(LAYERS[kind], arguments.items()))  # type: ignore[arg-type]

    def __getitem__(self, argument: str) -> Any:
        """An argument's value, the default where it is not written."""
        return dict(self.arguments).get(argument, LAYERS[self.kind][argument].default)

    def with_arguments(self, **changes: Literal) -> "Layer":
        """The layer with some arguments changed."""
        return Layer.make(self.name, self.kind, **{**dict(self.arguments), **changes})

    @property
    def signature(self) -> LayerKind:
        return LAYERS[self.kind]

    @property
    def is_depthwise(self) -> bool:
        """Whether every group of a conv reads one channel, so that input channels pass through to outputs of their own."""
        return self.kind == "Conv2d" and self["groups"] > 1 and self["groups"] == self["in_channels"]


@dataclass(frozen=True)
class Declared:
    """A parameter that the network declares directly: `self.<name> = nn.Parameter(torch.zeros(<shape>))`."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One call of the forward pass. `target` is `self.<layer>`, a function of the catalog such as `F.relu`, or an operator such as `+`."""

    target: str
    arguments: tuple[tuple[str, Argument], ...]

    @classmethod
    def make(cls, target: str, **arguments: Argument) -> "Step":
        """A step with its arguments checked and in canonical form.

        Raises:
            ValueError: for an unknown function or argument, a value that the argument does not take, or a step that reads no result.
        """
        signature = signature_of(target)
        step = cls(target, bind(signature, arguments.items()))  # type: ignore[arg-type]
        for name, argument in step.arguments:
            kind = signature[name].kind
            if isinstance(argument, (Value, Attribute)) and (argument == TRAINING) != (kind is Kind.TRAINING):
                raise ValueError(f"{name} must be {kind.value}")
        if not step.inputs():
            raise ValueError("takes a result of the network")
        return step

    def __getitem__(self, argument: str) -> Any:
        return dict(self.arguments).get(argument, signature_of(self.target)[argument].default)

    @property
    def layer(self) -> str | None:
        """The name of the layer that is called, or None for a function."""
        return self.target[5:] if self.target.startswith("self.") else None

    def inputs(self) -> tuple[Value, ...]:
        """The results that the step reads, in order."""
        return tuple(argument for _, argument in self.arguments if isinstance(argument, Value))

    def attributes(self) -> tuple[str, ...]:
        """The attributes of the network that the step reads."""
        return tuple(argument.name for _, argument in self.arguments if isinstance(argument, Attribute))

    def map_values(self, change: Callable[[Value], "Argument"]) -> "Step":
        """The step with every Value replaced."""
        return replace(self, arguments=tuple((k, change(v) if isinstance(v, Value) else v) for k, v in self.arguments))


_LAYER_CALL = FUNCTIONS["F.relu"]  # a layer is called with one tensor, as relu is


def signature_of(target: str) -> Signature:
    """The signature of what a step calls.

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

    `input_shape` is (C, H, W), without the batch. `output` is the value that `forward` returns. `declared` is put in order of first use.

    Raises:
        GraphError: if names clash or cannot be attributes, a step refers to what is not there, or anything is defined and never used.
    """

    class_name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    steps: tuple[Step, ...]
    output: Value
    declared: tuple[Declared, ...] = ()

    def __post_init__(self) -> None:
        check_identifier(self.class_name, "class")
        if not self.input_shape or min(self.input_shape) < 1:
            raise GraphError("the input shape needs sizes from 1")
        names = [layer.name for layer in self.layers] + [tensor.name for tensor in self.declared]
        for name in names:
            check_identifier(name, "layer")
        if len(set(names)) < len(names):
            raise GraphError(f"{next(n for n in names if names.count(n) > 1)} is defined twice")
        for tensor in self.declared:
            if not tensor.shape or min(tensor.shape) < 1:
                raise GraphError(f"self.{tensor.name} needs sizes from 1", tensor.name)
        self._check_steps()
        read = [name for step in self.steps for name in step.attributes()]
        object.__setattr__(self, "declared", tuple(sorted(self.declared, key=lambda tensor: read.index(tensor.name))))

    def _check_steps(self) -> None:
        layers, declared = {layer.name for layer in self.layers}, {tensor.name for tensor in self.declared}
        used_values, used_names = {self.output.index}, set()
        for number, step in enumerate(self.steps):
            if step.layer is not None and step.layer not in layers:
                raise GraphError(f"self.{step.layer} is called and not defined", number)
            if step.layer is not None:
                used_names.add(step.layer)
            for attribute in step.attributes():
                if attribute != TRAINING.name and attribute not in declared:
                    raise GraphError(f"self.{attribute} is read and not defined", number)
                used_names.add(attribute)
            for value in step.inputs():
                if not 0 <= value.index <= number:
                    raise GraphError(f"step {number} reads a result that is not there yet", number)
                used_values.add(value.index)
        if not 0 <= self.output.index <= len(self.steps):
            raise GraphError("the output is not a result of the network")
        for number, step in enumerate(self.steps):
            if number + 1 not in used_values:
                raise GraphError(f"the result of {step.target} is never used", number)
        for name in sorted((layers | declared) - used_names):
            raise GraphError(f"self.{name} is never used", name)

    def layer(self, name: str) -> Layer:
        """The layer of a name.

        Raises:
            KeyError: if there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def uses(self) -> dict[Value, list[int]]:
        """For every value, the numbers of the steps that read it (a step twice if it reads it twice)."""
        uses: dict[Value, list[int]] = {Value(i): [] for i in range(len(self.steps) + 1)}
        for number, step in enumerate(self.steps):
            for value in step.inputs():
                uses[value].append(number)
        return uses

    def results(self) -> Iterator[tuple[Value, Step]]:
        """Every step with the value it makes."""
        for number, step in enumerate(self.steps):
            yield Value(number + 1), step


def check_identifier(name: str, what: str) -> None:
    """Refuse names that cannot be attributes of a network.

    Raises:
        GraphError: for what is no identifier, is a keyword, starts with an underscore, or hides a name of torch.nn.Module or of the file.
    """
    hidden = name in (RESERVED_NAMES if what == "layer" else FILE_NAMES)
    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or hidden:
        raise GraphError(f"{name!r} cannot name a {what}", name if what == "layer" else None)
