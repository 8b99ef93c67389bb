"""Choose the names of a network's results in `forward`, line by line.

The main path is `x`. A value that is needed later is set aside under a name that says what for: `shortcut` for a later addition, `gate`
for a multiplication, `query` for attention, `branch` otherwise. Values computed from declared tensors alone, or in train mode only, have
names of their own, so that `x` is the same in both modes. A name set aside is deleted after its last use, so that no activation is kept
longer than needed.
"""

import keyword
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise

from prunetrain.graph.blocks import block_of
from prunetrain.graph.catalog import FILE_NAMES
from prunetrain.graph.free_names import free_name
from prunetrain.graph.layergraph import LayerGraph, Operand, Step, Value

MAIN = "x"
_NAME_BY_READER = {"+": "shortcut", "*": "gate", "torch.index_add": "shortcut", "torch.cat": "branch", "torch.stack": "branch"}
_CONSTANT_NAME_BY_READER = {"+": "bias", "*": "scale"}
_NAME_BY_ARGUMENT = {"query": "query", "key": "key", "value": "value", "attn_mask": "mask", "weight": "weight", "bias": "bias"}
_SIDES = {"input": "left", "other": "right"}  # of a matrix product
_PARTS = ("query", "key", "value")  # the inputs of attention, if all three are slices of one tensor


class DataPath(Enum):
    """What a line of `forward` belongs to."""

    MAIN = "what both modes compute from the images"
    CONSTANT = "what both modes compute from declared tensors alone"
    TRAINING = "what runs in train mode only"


def paths_of(graph: LayerGraph) -> list[DataPath]:
    """Return the path of every step."""
    constant: set[Value] = set()
    paths = []
    for number, step in enumerate(graph.steps):
        if set(_contents(step)) <= constant:
            constant.add(Value(number + 1))
        is_constant = Value(number + 1) in constant
        paths.append(DataPath.TRAINING if number in graph.in_training_only else DataPath.CONSTANT if is_constant else DataPath.MAIN)
    return paths


def _contents(step: Step) -> list[Value]:
    """Return the results of which a step reads the elements, not only the shape."""
    return [operand for operand in step.operands() if isinstance(operand, Value)]


class LocalNames:
    """Local names of values, given as the statements are written from first to last."""

    def __init__(self, graph: LayerGraph, lines: Sequence[Sequence[int]], blocks: Sequence[str]) -> None:
        self._graph = graph
        self._uses = graph.uses()
        self._paths = paths_of(graph)
        self._line_of = {step: number for number, line in enumerate(lines) for step in line}
        self._blocks = blocks
        main = [number for number, line in enumerate(lines) if self._paths[line[-1]] is DataPath.MAIN]
        self._reads = [{value for step in line for value in graph.steps[step].inputs()} for line in lines]
        self._read_next = {number: self._reads[following] for number, following in pairwise(main)}
        self._last_use = {value: self._line_of[readers[-1]] if readers else -1 for value, readers in self._uses.items()}
        self._last_use |= dict.fromkeys(graph.outputs, len(lines))
        self._auxiliary_output_of = _auxiliary_output_of(graph)
        self._names: dict[Value, str] = {Value(0): MAIN}
        self._in_training_only: set[str] = set()  # names that eval mode does not have

    def of(self, value: Value) -> str:
        """Return the current name of a value."""
        return self._names[value]

    def for_line(self, line: int, result: Value) -> tuple[str, str]:
        """Return the name under which `x` is set aside before a line ("" if it is not), and the name of the line's result."""
        if self._paths[result.index - 1] is not DataPath.MAIN:
            return "", self._free_name(result, line + 1)
        if self._keeps_name(line, result):
            (value,) = self._reads[line]
            return "", self._names[value]
        if line in self._read_next and result not in self._read_next[line]:
            return "", self._free_name(result, line + 1)
        holder = next((value for value, name in self._names.items() if name == MAIN), None)
        if holder is None or self._last_use[holder] <= line:
            return "", MAIN
        return self._free_name(holder, line), MAIN  # set aside before the line runs, so the names that the line reads are taken too

    def _keeps_name(self, line: int, result: Value) -> bool:
        """Whether a line changes a value that has a name of its own: `query = torch.transpose(query, 1, 2)`."""
        if len(self._reads[line]) != 1:
            return False
        (value,) = self._reads[line]
        return self._names[value] != MAIN and self._last_use[value] <= line and self._base(value) == self._base(result)

    def set_aside(self, aside: str) -> None:
        """Give the value in `x` another name."""
        self._names = {value: aside if name == MAIN else name for value, name in self._names.items()}
        self._in_training_only.discard(aside)

    def bind(self, value: Value, name: str) -> None:
        """Give a name to a value, and take it from any other value."""
        self._names = {v: n for v, n in self._names.items() if n != name} | {value: name}
        self._in_training_only.discard(name)
        if self._path(value) is DataPath.TRAINING:
            self._in_training_only.add(name)

    def release_names_after(self, line: int, *, in_training: bool, main: bool = False) -> list[str]:
        """Free and return the names that nothing reads after a line.

        Args:
            line: the line's number.
            in_training: whether to look at the names that only train mode has, or at those of both modes.
            main: whether to include `x`, which needs no `del` if the line itself gives it a new value.
        """
        dead = [value for value, name in self._names.items() if self._last_use[value] <= line and (main or name != MAIN)]
        return [self._names.pop(value) for value in dead if (self._names[value] in self._in_training_only) == in_training]

    def _free_name(self, value: Value, first_line_taken: int) -> str:
        taken = {name for v, name in self._names.items() if self._last_use[v] >= first_line_taken}
        if self._path(value) is DataPath.TRAINING:  # must not touch what eval mode has
            taken |= set(self._names.values()) - self._in_training_only
        return free_name(self._base(value), taken)

    def _path(self, value: Value) -> DataPath:
        return self._paths[value.index - 1] if value.index else DataPath.MAIN

    def _base(self, value: Value) -> str:
        """Return a value's name if it is free: after the step that reads it last, or, for an output, after what made it."""
        value = self._auxiliary_output_of.get(value, value)
        constant = self._path(value) is DataPath.CONSTANT
        while value not in self._graph.outputs:
            reader = self._graph.steps[self._uses[value][-1]]
            words = _CONSTANT_NAME_BY_READER if constant else _NAME_BY_READER
            passes_on = len(self._uses[value]) == 1 and reader.layer is None and reader.operands() == (value,)
            if not passes_on and not (constant and self._path(Value(self._uses[value][-1] + 1)) is DataPath.CONSTANT):
                word = words.get(reader.target) or self._part(value, reader) or _role(reader, value)
                return word or (self._source_tensor_name(value) if constant else "inputs" if len(self._uses[value]) > 1 else "branch")
            value = Value(self._uses[value][-1] + 1)
        return self._producer_name(value)

    def _part(self, value: Value, reader: Step) -> str:
        """Return "query", "key" or "value" for a factor of a matrix product that is one of three parts of a tensor, else ""."""
        if reader.target not in ("@", "torch.einsum"):
            return ""
        while value.index:
            step = self._graph.steps[value.index - 1]
            source = step.inputs()[0] if len(step.operands()) == 1 and step.inputs() else Value(0)
            if step.target in ("[]", "[:]"):
                parts = [n for n in self._uses[source] if self._graph.steps[n].target == step.target]
                return _PARTS[parts.index(value.index - 1)] if len(parts) == len(_PARTS) else ""
            value = source
        return ""

    def _producer_name(self, value: Value) -> str:
        """Return the block, or else the layer, that made a value; if no layer did, the one that made its input."""
        while value.index:
            line = self._line_of[value.index - 1]
            layers = [step.layer for number, step in enumerate(self._graph.steps) if self._line_of[number] == line and step.layer]
            if self._blocks[line] or layers:
                return _allowed(self._blocks[line].replace(".", "_") or layers[0])
            value = next(iter(self._graph.steps[value.index - 1].inputs()), Value(0))
        return "inputs"

    def _source_tensor_name(self, value: Value) -> str:
        """Return the name of the first declared tensor that a constant is made of, without its block."""
        operand: Operand = value
        while isinstance(operand, Value):
            operand = self._graph.steps[operand.index - 1].operands()[0]
        block = block_of(operand.name)
        return _allowed(operand.name[len(block) + 1 :] if block else operand.name)


def _role(reader: Step, value: Value) -> str:
    """Return the role of a value in the function that reads it, or "" if there is no word for it."""
    for name, argument in reader.arguments:
        if argument == value:
            return _SIDES.get(name, "") if reader.target == "@" else _NAME_BY_ARGUMENT.get(name, "")
    return ""


def _auxiliary_output_of(graph: LayerGraph) -> dict[Value, Value]:
    """Map every result that only train mode has to the first auxiliary output that needs it."""
    found: dict[Value, Value] = {}
    for output in sorted(graph.auxiliary):
        waiting = [output]
        while waiting:
            value = waiting.pop()
            if value.index - 1 in graph.in_training_only and value not in found:
                found[value] = output
                waiting += graph.steps[value.index - 1].inputs()
    return found


def _allowed(name: str) -> str:
    """Return a readable name for a local variable that hides nothing."""
    if not name.isidentifier():  # such as a layer's number
        return f"branch_{name}"
    return f"{name}_out" if name in FILE_NAMES or name == MAIN or len(name) == 1 or keyword.iskeyword(name) else name
