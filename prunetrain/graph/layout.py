"""How a forward pass reads: which calls share a line, what the local variables are called, where blocks begin.

In: a LayerGraph. Out: statements as text. Only presentation is decided here: `parse` gets the same graph back whatever names are chosen.

Lines: a normalisation, activation or dropout wraps the call before it (`F.relu(self.bn1(self.conv1(x)))`); everything else starts a line.
Names: the main path is `x`. A value that is needed later is set aside under a name that says what for: `shortcut` for a later addition,
`gate` for a multiplication, `branch` otherwise. A name set aside is deleted after its last use, so that no activation outlives its need.
"""

from collections.abc import Callable
from dataclasses import dataclass

from prunetrain.graph.catalog import ELEMENTWISE, OPERATORS
from prunetrain.graph.layergraph import Argument, Attribute, LayerGraph, Step, Value, signature_of

_MAIN = "x"
_WRAPPING = frozenset(ELEMENTWISE) | {"F.dropout"}
_WRAPPING_LAYERS = frozenset({"BatchNorm1d", "BatchNorm2d"})
_LONGEST = 4  # calls on a line, such as conv, normalisation, activation, dropout
_HEAD = frozenset({"F.adaptive_avg_pool2d", "torch.flatten"})  # belongs to what follows
_SIDE_NAMES = {"+": "shortcut", "*": "gate"}


@dataclass(frozen=True)
class Statement:
    """A line of `forward`: the block it belongs to, the name it sets ("" for return and del), its code, and the value it makes.

    `value` is None where nothing is computed: for aliases (`shortcut = x`) and deletions.
    """

    block: str
    target: str
    code: str
    value: Value | None = None


def block_of(name: str) -> str:
    """The block that a layer's name tells: "layer1.0" for layer1_0_conv1 and layer1_0_downsample_0, "" for conv1 and fc.

    The name up to its first run of numbers; if nothing follows these, the name without its last part.
    """
    parts = name.split("_")
    for start, part in enumerate(parts):
        if part.isdigit():
            end = start
            while end < len(parts) and parts[end].isdigit():
                end += 1
            if end < len(parts):
                return ".".join(parts[:end])
            break
    return ".".join(parts[:-1])


def layout(graph: LayerGraph) -> list[Statement]:
    """The forward pass as statements, in order; the last one returns the output."""
    lines = _lines(graph)
    if not lines:
        return [Statement("", "", f"return {_MAIN}", graph.output)]
    names = _Names(graph, lines)
    statements: list[Statement] = []
    for number, (line, block) in enumerate(zip(lines, _blocks(graph, lines), strict=True)):
        value = Value(line[-1] + 1)
        aside, target = names.plan(number, value)
        code = _expression(graph, line, names.of)
        if aside:
            statements.append(Statement(block, aside, f"{aside} = {_MAIN}"))
            names.set_aside(aside)
        names.bind(value, target)
        if number == len(lines) - 1:
            statements.append(Statement(block, "", f"return {code}", value))
        else:
            statements.append(Statement(block, target, f"{target} = {code}", value))
            statements += [Statement(block, "", f"del {name}") for name in names.dead_after(number)]
    return _without_idle_deletions(statements)


def _without_idle_deletions(statements: list[Statement]) -> list[Statement]:
    """Leave out a `del` before an alias that gives the name to another value anyway: nothing is computed in between."""
    following = [*statements[1:], None]
    return [
        s for s, after in zip(statements, following, strict=True) if not (after and s.code == f"del {after.target}" and after.value is None)
    ]


def _lines(graph: LayerGraph) -> list[list[int]]:
    """Step numbers that share a line, innermost call first."""
    kinds = {layer.name: layer.kind for layer in graph.layers}
    uses = graph.uses()
    lines: list[list[int]] = []
    for number, step in enumerate(graph.steps):
        wraps = step.target in _WRAPPING or (step.layer is not None and kinds[step.layer] in _WRAPPING_LAYERS)
        fits = lines and len(lines[-1]) < _LONGEST
        if fits and wraps and step.inputs() == (Value(number),) and uses[Value(number)] == [number]:
            lines[-1].append(number)
        else:
            lines.append([number])
    return lines


def _blocks(graph: LayerGraph, lines: list[list[int]]) -> list[str]:
    """The block of every line: its layer's; without a layer, that of the line before (global pooling and flatten: the line after)."""
    own: list[str | None] = []
    for line in lines:
        names = [name for number in line for name in (graph.steps[number].layer, *graph.steps[number].attributes())]
        own.append(next((block_of(name) for name in names if name not in (None, "training")), None))
    blocks: list[str] = []
    for number, block in enumerate(own):
        following = next((b for b in own[number:] if b is not None), "")
        previous = blocks[-1] if blocks else following
        if block is not None:
            inside = previous and block.startswith(previous + ".")
            blocks.append(previous if inside else block)
        elif graph.steps[lines[number][0]].target in _HEAD:
            blocks.append(following)
        else:
            blocks.append(previous)
    return blocks


class _Names:
    """Gives every value a local name as the statements are written from first to last."""

    def __init__(self, graph: LayerGraph, lines: list[list[int]]) -> None:
        line_of = {step: number for number, line in enumerate(lines) for step in line}
        self._reads = [{value for step in line for value in graph.steps[step].inputs()} for line in lines]
        self._last_use: dict[Value, int] = {}
        self._side_base: dict[Value, str] = {}
        for value, readers in graph.uses().items():
            self._last_use[value] = line_of[readers[-1]] if readers else -1
            self._side_base[value] = _SIDE_NAMES.get(graph.steps[readers[-1]].target, "branch") if readers else "branch"
        self._names: dict[Value, str] = {Value(0): _MAIN}

    def of(self, value: Value) -> str:
        """The present name of a value."""
        return self._names[value]

    def bind(self, value: Value, name: str) -> None:
        """Give a name to a value; whatever had it before has it no more."""
        self._names = {v: n for v, n in self._names.items() if n != name} | {value: name}

    def plan(self, line: int, result: Value) -> tuple[str, str]:
        """The name under which `x` is set aside first, if it must be, and the name of the result."""
        holder = next((value for value, name in self._names.items() if name == _MAIN), None)
        if holder is None or self._last_use[holder] <= line:
            return "", _MAIN
        if line + 1 < len(self._reads) and result not in self._reads[line + 1]:
            return "", self._free_name(result, line + 1)
        return self._free_name(holder, line), _MAIN  # set aside before the line runs, so what it reads is taken too

    def set_aside(self, aside: str) -> None:
        """Give what `x` holds another name."""
        self._names = {value: aside if name == _MAIN else name for value, name in self._names.items()}

    def dead_after(self, line: int) -> list[str]:
        """Names set aside that are not read after a line; they lose their values."""
        dead = [value for value, name in self._names.items() if name != _MAIN and self._last_use[value] <= line]
        return [self._names.pop(value) for value in dead]

    def _free_name(self, value: Value, first_line_taken: int) -> str:
        taken = {name for v, name in self._names.items() if self._last_use[v] >= first_line_taken}
        base = self._side_base[value]
        name, number = base, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        return name


def _expression(graph: LayerGraph, line: list[int], name_of: Callable[[Value], str]) -> str:
    text = ""
    for position, number in enumerate(line):
        inner = text if position else None
        text = _call(graph.steps[number], inner, name_of)
    return text


def _call(step: Step, inner: str | None, name_of: Callable[[Value], str]) -> str:
    def write(argument: Argument) -> str:
        if isinstance(argument, Value):
            return inner if inner is not None else name_of(argument)
        return f"self.{argument.name}" if isinstance(argument, Attribute) else literal(argument)

    written = [(name, write(argument)) for name, argument in step.arguments]
    if step.target in OPERATORS:
        return f" {step.target} ".join(text for _, text in written)
    signature = signature_of(step.target)
    return f"{step.target}({join_arguments(written, signature.names()[: signature.positional])})"


def join_arguments(written: list[tuple[str, str]], positional: tuple[str, ...]) -> str:
    """Arguments as they stand in a call: the leading ones without names as long as none is left out, the rest with."""
    texts = []
    for position, (name, text) in enumerate(written):
        in_place = position < len(positional) and positional[position] == name
        texts.append(text if in_place else f"{name}={text}")
    return ", ".join(texts)


def literal(value: object) -> str:
    """A literal as ruff format would leave it."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        inner = ", ".join(map(literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)
