"""Signatures of calls: their parameters, the values that each accepts, and the one form in which a call is written. No torch here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from math import isfinite
from typing import Final, TypeAlias

Literal: TypeAlias = "int | float | bool | str | tuple[Literal, ...] | None"


class Kind(Enum):
    """The kinds of values that parameters take, in the words of error messages."""

    COUNT = "a whole number from 1"
    INTEGER = "a whole number"
    INTEGERS = "a whole number or a tuple of them"
    SIZE = "a whole number from 1 or a pair of them"
    SIZES = "a whole number from 1 or a tuple of them"
    MARGIN = "a whole number from 0 or a pair of them"
    PADDING = "a whole number from 0, a pair of them, 'same' or 'valid'"
    SPAN = "a whole number from 0, 'same' or 'valid'"
    SHAPE = "a tuple of sizes, one of which may be -1"
    WORD = "a string"
    FLAG = "True or False"
    NUMBER = "a finite number"
    NUMBERS = "a finite number or a tuple of them"
    PROBABILITY = "a number from 0 to 1"
    TENSOR = "a tensor"
    TENSORS = "a tuple of tensors"
    OPERAND = "a tensor or a number"
    TRAINING = "self.training, True or False"


class _Required(Enum):
    REQUIRED = "required"


REQUIRED: Final = _Required.REQUIRED


@dataclass(frozen=True)
class Parameter:
    """One parameter of a layer's constructor or of a function; `choices` are the strings that a WORD may be."""

    name: str
    kind: Kind
    default: "Literal | _Required" = REQUIRED
    choices: tuple[str, ...] = ()

    def accepts(self, value: object) -> bool:
        """Whether a literal is allowed for this parameter (tensors are never literals)."""
        if value == self.default and type(value) is type(self.default):
            return True
        if self.kind is Kind.WORD:
            return isinstance(value, str) and (value in self.choices if self.choices else value.isascii() and value.isprintable())
        return _ACCEPTS[self.kind](value)

    def canonical(self, value: Literal) -> Literal:
        """Return the canonical form of a value: 3 for (3, 3)."""
        if self.kind in (Kind.SIZE, Kind.MARGIN, Kind.PADDING) and isinstance(value, tuple) and len(set(value)) == 1:
            return value[0]
        if self.kind in (Kind.SIZES, Kind.INTEGERS, Kind.NUMBERS) and isinstance(value, tuple) and len(value) == 1:
            return value[0]
        return value

    @property
    def expected(self) -> str:
        """What a value must be, for error messages."""
        return f"one of {', '.join(map(repr, self.choices))}" if self.choices else self.kind.value

    @property
    def takes_tensors(self) -> bool:
        """Whether a result of the network is allowed for this parameter."""
        return self.kind in (Kind.TENSOR, Kind.TENSORS, Kind.OPERAND)


def is_integer(value: object) -> bool:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return is_integer(value) or (isinstance(value, float) and isfinite(value))


def _spatial(least: int, *words: str) -> Callable[[object], bool]:
    def accepts(value: object) -> bool:
        pair = value if isinstance(value, tuple) else (value, value)
        return (len(pair) == 2 and all(is_integer(v) and v >= least for v in pair)) or (isinstance(value, str) and value in words)

    return accepts


def _one_or_many(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: bool(value) and all(map(check, value)) if isinstance(value, tuple) else check(value)


def _is_count(value: object) -> bool:
    return is_integer(value) and value >= 1  # type: ignore[operator]


_ACCEPTS: Final[dict[Kind, Callable[[object], bool]]] = {
    Kind.COUNT: _is_count,
    Kind.INTEGER: is_integer,
    Kind.INTEGERS: _one_or_many(is_integer),
    Kind.SIZE: _spatial(1),
    Kind.SIZES: _one_or_many(_is_count),
    Kind.MARGIN: _spatial(0),
    Kind.PADDING: _spatial(0, "same", "valid"),
    Kind.SPAN: lambda value: (is_integer(value) and value >= 0) or value in ("same", "valid"),  # type: ignore[operator]
    Kind.SHAPE: lambda value: isinstance(value, tuple) and bool(value) and all(_is_count(v) or (is_integer(v) and v == -1) for v in value),
    Kind.FLAG: lambda value: isinstance(value, bool),
    Kind.NUMBER: _is_number,
    Kind.NUMBERS: _one_or_many(_is_number),
    Kind.PROBABILITY: lambda value: _is_number(value) and 0 <= value <= 1,  # type: ignore[operator]
    Kind.TENSOR: lambda _: False,
    Kind.TENSORS: lambda _: False,
    Kind.OPERAND: _is_number,
    Kind.TRAINING: lambda value: isinstance(value, bool),
}


@dataclass(frozen=True)
class Signature:
    """The parameters of a call, in order; the first `positional` of them are written without their names."""

    parameters: tuple[Parameter, ...]
    positional: int = 1

    def __getitem__(self, name: str) -> Parameter:
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)

    def names(self) -> tuple[str, ...]:
        """Parameter names in order."""
        return tuple(parameter.name for parameter in self.parameters)


def bind(signature: Signature, arguments: Iterable[tuple[str, object]]) -> tuple[tuple[str, object], ...]:
    """Return the arguments in the signature's order and canonical form, without those that equal the default.

    Arguments that are not literals (results, attributes, and tuples with some of them) are accepted for any parameter that takes tensors,
    a shape or the mode; the caller must check them.

    Raises:
        ValueError: for an unknown, repeated or missing argument, or a literal the parameter does not take.
    """
    given: dict[str, object] = {}
    known = signature.names()
    for name, value in arguments:
        if name not in known:
            raise ValueError(f"unknown argument {name!r}")
        if name in given:
            raise ValueError(f"argument {name!r} is given twice")
        given[name] = value
    bound = []
    for parameter in signature.parameters:
        if parameter.name not in given:
            if parameter.default is REQUIRED:
                raise ValueError(f"argument {parameter.name!r} is missing")
            continue
        value = given[parameter.name]
        if is_literal(value):
            if not parameter.accepts(value):
                raise ValueError(f"{parameter.name} must be {parameter.expected}, not {value!r}")
            value = parameter.canonical(value)  # type: ignore[arg-type]
            if value == parameter.default and isinstance(value, bool) == isinstance(parameter.default, bool):
                continue
        elif not parameter.takes_tensors and parameter.kind not in (Kind.TRAINING, Kind.SHAPE):
            raise ValueError(f"{parameter.name} must be {parameter.expected}")
        bound.append((parameter.name, value))
    return tuple(bound)


def is_literal(value: object) -> bool:
    """Whether a value is a literal, or a tuple of literals at any depth."""
    if isinstance(value, tuple):
        return all(map(is_literal, value))
    return isinstance(value, (int, float, str, type(None)))
