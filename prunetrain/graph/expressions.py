"""The steps of one line as an expression: calls, operators and subscripts, each in the one form that `parse` reads back."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby

from prunetrain.graph.catalog import LAYERS, LayerKind
from prunetrain.graph.functions import OPERATORS, RESULT_OF
from prunetrain.graph.layergraph import Argument, Attribute, BatchSize, Step, Value, signature_of
from prunetrain.graph.signatures import is_literal

PLAIN_CALL = LayerKind.call
_NAME_OR_NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?|[A-Za-z_][\w.]*")
_TUPLES = frozenset({("torch.flip", "dims"), ("torch.permute", "dims")})  # torch takes no single number for these


def expression(steps: Sequence[Step], kinds: Sequence[str | None], name_of: Callable[[Value], str]) -> str:
    """Return the expression of nested steps, innermost first.

    Args:
        steps: each but the first reads the one before it, and no other result.
        kinds: for each step the class of the layer that it calls, None for functions.
        name_of: the local name of a result.
    """
    text, is_operator = "", False
    position = 0
    for _, run in groupby(range(len(steps)), key=lambda number: _bracket(steps, number)):
        together = [steps[number] for number in run]
        first = together[0]
        inner = None if position == 0 else f"({text})" if is_operator and _needs_parentheses(first) else text
        if first.target in ("[:]", "[]"):
            text = (_argument_text(first["input"], name_of) if inner is None else inner) + _subscript(together)
        else:
            text = _call(first, kinds[position], inner, name_of)
        is_operator = first.target in OPERATORS
        position += len(together)
    return text


def _needs_parentheses(step: Step) -> bool:
    """Whether an operator inside the step needs parentheses."""
    return step.target in OPERATORS or step.target in ("[:]", "[]")


def _bracket(steps: Sequence[Step], number: int) -> int:
    """Return the number of the first slice that shares a step's brackets, or the step's own number if none does."""
    first = number
    while first and share_brackets(steps[first - 1], steps[first]):
        first -= 1
    return first


def share_brackets(before: Step, step: Step) -> bool:
    """Whether two slices can be written as one subscript: of dimensions counted from the front, in this order."""
    both = before.target == step.target == "[:]"
    return both and 0 <= before["dim"] < step["dim"] and _slice(before) != ":" != _slice(step)


def _subscript(steps: Sequence[Step]) -> str:
    """`[:, :, ::2, 1:]`: slices of rising dimensions, or one slice or index; a dimension counted from the end follows `...`."""
    last = steps[-1]["dim"]
    if last < 0:
        return f"[{', '.join(['...', _item(steps[-1]), *[':'] * (-last - 1)])}]"
    items = [":"] * (last + 1)
    for step in steps:
        items[step["dim"]] = _item(step)
    return f"[{', '.join(items)}]"


def _item(step: Step) -> str:
    return _slice(step) if step.target == "[:]" else str(step["index"])


def _slice(step: Step) -> str:
    start, stop, stride = step["start"], step["stop"], step["step"]
    text = f"{start if start != 0 else ''}:{'' if stop is None else stop}"
    return f"{text}:{stride}" if stride != 1 else text


def _call(step: Step, kind: str | None, inner: str | None, name_of: Callable[[Value], str]) -> str:
    written = [(name, inner if inner is not None and isinstance(a, Value) else _argument_text(a, name_of)) for name, a in _arguments(step)]
    if step.target in OPERATORS:
        return _power(*(text for _, text in written)) if step.target == "**" else f" {step.target} ".join(text for _, text in written)
    if kind is not None and LAYERS[kind].call != PLAIN_CALL:
        return LAYERS[kind].call.format(name=step.target, input=written[0][1])
    if step.target == "torch.einsum":  # takes its operands one by one
        written[1] = ("operands", ", ".join(_argument_text(operand, name_of) for operand in step["operands"]))
    signature = signature_of(step.target)
    return f"{step.target}({join_arguments(written, signature.names()[: signature.positional])}){RESULT_OF.get(step.target, '')}"


def _power(base: str, exponent: str) -> str:
    """A power as ruff formats it: names and numbers without spaces. A minus binds less than the power."""
    if base.startswith("-"):
        base = f"({base})"
    space = "" if _NAME_OR_NUMBER.fullmatch(base) and _NAME_OR_NUMBER.fullmatch(exponent) else " "
    return f"{base}{space}**{space}{exponent}"


def _arguments(step: Step) -> list[tuple[str, Argument]]:
    """Return a step's arguments as torch expects them."""
    arguments = [(name, (a,) if isinstance(a, int) and (step.target, name) in _TUPLES else a) for name, a in step.arguments]
    if step.target == "F.batch_norm":  # has no defaults for the first two
        return list(({"input": None, "running_mean": None, "running_var": None} | dict(arguments)).items())
    return arguments


def _argument_text(argument: Argument, name_of: Callable[[Value], str]) -> str:
    match argument:
        case Value():
            return name_of(argument)
        case Attribute(name):
            return f"self.{name}"
        case BatchSize(value):
            return f"{name_of(value)}.shape[0]"
        case tuple() if not is_literal(argument):
            return _tuple([_argument_text(item, name_of) for item in argument])
    return literal(argument)


def annotation(outputs: int, *, auxiliary: bool) -> str:
    """Return the annotation of what `forward` returns: `outputs` tensors in eval mode, and more in train mode if some are `auxiliary`."""
    if outputs == 1:
        return "Tensor | tuple[Tensor, ...]" if auxiliary else "Tensor"
    return "tuple[Tensor, ...]" if auxiliary else f"tuple[{', '.join(['Tensor'] * outputs)}]"


def join_arguments(written: list[tuple[str, str]], positional: tuple[str, ...]) -> str:
    """Join the arguments of a call: the leading ones without names as long as none is left out, the rest with names."""
    texts = []
    for position, (name, text) in enumerate(written):
        in_place = position < len(positional) and positional[position] == name
        texts.append(text if in_place else f"{name}={text}")
    return ", ".join(texts)


def literal(value: object) -> str:
    """Return a literal as ruff would format it."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return _tuple(list(map(literal, value)))
    return repr(value)


def _tuple(items: list[str]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
