"""How a forward pass reads: which calls share a line, what the local variables are called, where blocks begin.

In: a LayerGraph. Out: statements as text. Only presentation is decided here: `parse` gets the same graph back whatever names are chosen.

A normalisation, activation or dropout wraps the call before it (`F.relu(self.bn1(self.conv1(x)))`), as does a small change of its
result: an operator with a number, an index. Everything else starts a line.
"""

from dataclasses import dataclass
from itertools import pairwise

from prunetrain.graph.blocks import blocks_of
from prunetrain.graph.expressions import PLAIN_CALL, expression, share_brackets
from prunetrain.graph.functions import FAMILY_OF, OPERATORS, Family
from prunetrain.graph.layergraph import Layer, LayerGraph, Step, Value
from prunetrain.graph.local_names import MAIN, LocalNames

_WRAPPING = frozenset({Family.ELEMENTWISE, Family.RANDOM, Family.NORMALIZE})
_WRAPPING_LAYERS = frozenset({"BatchNorm1d", "BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm", "PReLU", "RMSNorm"})
_SELECTIONS = frozenset({"[:]", "[]", "torch.index_select"})  # select part of x: a layer that reads the part wraps it
_MAX_CALLS_PER_LINE = 4  # calls on a line, such as conv, normalisation, activation, dropout


@dataclass(frozen=True)
class Statement:
    """A line of `forward`: the block it belongs to, the name it sets ("" for return and del), its code, and the value it makes.

    `value` is None where nothing is computed: for aliases (`shortcut = x`), deletions, and the return of several values. Lines that
    are `in_training` run in train mode only.
    """

    block: str
    target: str
    code: str
    value: Value | None = None
    in_training: bool = False


def layout(graph: LayerGraph) -> list[Statement]:
    """Return the forward pass as statements, in order; the last one returns the output."""
    layers = {layer.name: layer for layer in graph.layers}
    lines = _lines(graph, layers)
    blocks = blocks_of(graph, lines)
    names = LocalNames(graph, lines, blocks)
    statements: list[Statement] = []
    for number, (line, block) in enumerate(zip(lines, blocks, strict=True)):
        value, in_training = Value(line[-1] + 1), line[-1] in graph.in_training_only
        steps = [graph.steps[step] for step in line]
        aside, target = names.for_line(number, value)
        code = expression(steps, [layers[step.layer].kind if step.layer else None for step in steps], names.of)
        if aside:
            statements.append(Statement(block, aside, f"{aside} = {MAIN}"))
            names.set_aside(aside)
        names.bind(value, target)
        last = number == len(lines) - 1
        if last and graph.outputs == (value,):
            return [*_without_idle_deletions(statements), Statement(block, "", f"return {code}", value)]
        statements.append(Statement(block, target, f"{target} = {code}", value, in_training))
        if not last:
            following = (blocks[number + 1], lines[number + 1][0] in graph.in_training_only)
            statements += _deletions(names, number, statements[-1], ends=following != (block, True))
    return [*_without_idle_deletions(statements), *_returns(graph, names)]


def _deletions(names: LocalNames, line: int, statement: Statement, *, ends: bool) -> list[Statement]:
    """Return a `del` of names not read after a line. Names of both modes are deleted in both, when the part for train mode `ends`."""
    dead = [(names.release_names_after(line, in_training=True), True)] if statement.in_training else []
    if ends or not statement.in_training:
        dead.append((names.release_names_after(line, in_training=False, main=statement.target != MAIN), False))
    return [Statement(statement.block, "", f"del {', '.join(found)}", in_training=mode) for found, mode in dead if found]


def _returns(graph: LayerGraph, names: LocalNames) -> list[Statement]:
    returned = [names.of(value) for value in graph.outputs]
    in_both = returned[: len(returned) - len(graph.auxiliary)]
    statements = [Statement("", "", f"return {', '.join(returned)}", in_training=True)] if graph.auxiliary else []
    return [*statements, Statement("", "", f"return {', '.join(in_both)}")]


def _without_idle_deletions(statements: list[Statement]) -> list[Statement]:
    """Drop a `del` right before an alias that gives the name another value anyway: nothing is computed in between."""
    return [
        statement
        for statement, after in pairwise([*statements, None])
        if statement and not (after and statement.code == f"del {after.target}" and after.value is None)
    ]


def _lines(graph: LayerGraph, layers: dict[str, Layer]) -> list[list[int]]:
    """Return, for every line, the numbers of its steps, innermost call first."""
    uses = graph.uses()
    lines: list[list[int]] = []
    for number, step in enumerate(graph.steps):
        before = Value(number)
        alone = uses[before] == [number] and before not in graph.outputs and step.operands() == step.inputs() == (before,)
        if alone and lines and len(lines[-1]) < _MAX_CALLS_PER_LINE and _wraps(graph, layers, step, lines[-1]):
            lines[-1].append(number)
        else:
            lines.append([number])
    return lines


def _wraps(graph: LayerGraph, layers: dict[str, Layer], step: Step, line: list[int]) -> bool:
    """Whether a step wraps the line of the step before it."""
    before = graph.steps[line[-1]]
    selects = all(graph.steps[number].target in _SELECTIONS for number in line)
    if step.layer is not None:
        layer = layers[step.layer]
        return layer.kind in _WRAPPING_LAYERS or (selects and layer.signature.call == PLAIN_CALL)
    match step.target:
        case "[:]":
            return share_brackets(before, step)
        case "[]":
            return before.target not in OPERATORS
        case "F.pad":
            return selects
        case "torch.squeeze":  # stochastic depth: torch.squeeze(F.dropout3d(torch.unsqueeze(x, 1), 0.1, self.training), 1)
            return before.target in FAMILY_OF and FAMILY_OF[before.target] is Family.RANDOM
    return step.target in OPERATORS or FAMILY_OF[step.target] in _WRAPPING
