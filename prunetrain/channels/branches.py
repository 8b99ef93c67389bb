"""Remove residual branches that no longer compute anything: additions with an operand that is constant in every channel.

In: a graph, its weights, its constants. Out: the graph without such branches, and its weights. A constant other than
zero stays as a declared parameter; it replaces the bias at the end of the branch and takes over that bias's optimizer state.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prunetrain.channels.abstract import Abstract
from prunetrain.channels.constants import Constants
from prunetrain.channels.editing import filter_state, rebuild_graph
from prunetrain.channels.grids import Shapes
from prunetrain.channels.sources import Source
from prunetrain.graph.free_names import free_name
from prunetrain.graph.layergraph import TRAINING, Attribute, Declared, LayerGraph, Step, Value


@dataclass(frozen=True)
class BranchCut:
    """A graph without some branches.

    `removed` names the removed layers; `state` and `sources` are the remaining weights and where they come from.
    """

    graph: LayerGraph
    state: dict[str, Tensor]
    sources: dict[str, Source]
    removed: tuple[str, ...]


def remove_branches(graph: LayerGraph, state: Mapping[str, Tensor], constants: Constants, tolerance: float) -> BranchCut | None:
    """Remove the branches that are constant, in one walk over the steps; return None if there is none.

    The remaining graph may have further ones, which these branches kept from being removed.

    Args:
        graph: the network.
        state: its state dict.
        constants: what `find_constants` returns for the two.
        tolerance: how far the constant may differ between eval and train mode.
    """
    shapes, remover = Shapes(graph), _BranchRemover(graph, state, constants)
    for number, step in enumerate(graph.steps):
        if step.target != "+" or not remover.reads[Value(number + 1)]:
            continue
        for branch, other in (("other", "input"), ("input", "other")):
            if not isinstance(step[branch], Value) or not isinstance(step[other], Value):
                continue
            operand, rest = remover.current_value(step[branch]), remover.current_value(step[other])
            if shapes.of(operand) != shapes.of(rest) or not shapes.same_shape(rest, Value(number + 1)):
                continue  # what is left would be smaller than the sum, for example lack the batch dimension
            if not bool(constants.values[operand.index].same_in_both_modes(tolerance).all()):
                continue
            if remover.remove(number, operand, rest):
                break
    return remover.result() if remover.found else None


@dataclass(frozen=True)
class _Bias:
    """A constant that stays: the declared tensor, its numbers, and the bias that it replaces."""

    declared: Declared
    values: Tensor
    donor: str


class _BranchRemover:
    """The graph while branches are removed; values keep the numbers of the original graph."""

    def __init__(self, graph: LayerGraph, state: Mapping[str, Tensor], constants: Constants) -> None:
        self._graph = graph
        self._state = state
        self._constants = constants
        self._steps = list(graph.steps)
        self._replacements: dict[Value, Value] = {}  # the value that replaces a sum
        self._biases: dict[str, _Bias] = {}
        self.found = False
        self.reads = Counter((*graph.outputs, *(value for step in graph.steps for value in step.inputs())))
        self._calls = Counter(name for step in graph.steps for name in _names(step))

    def current_value(self, value: Value) -> Value:
        """The value that is read now in place of a value of the original graph."""
        return self._replacements.get(value, value)

    def remove(self, number: int, operand: Value, rest: Value) -> bool:
        """Remove the branch that ends in `operand`, which step `number` adds to `rest`, if it can go; return whether it went."""
        constant = self._constants.values[operand.index]
        zero = bool(constant.zero.all())
        donor = "" if zero else self._producer_bias(operand)
        gone = self._steps_unused_without(operand)
        lost = Counter(name for step in gone for name in _names(self._steps[step]))
        if not (zero or donor) or self._gradient_reaches_others(operand, lost):
            return False
        for step in gone:
            self.reads.subtract(self._inputs(step))
        self.reads[operand] -= 1
        if zero:
            self.reads[rest] += self.reads[Value(number + 1)] - 1
            self.reads[Value(number + 1)] = 0
            self._replacements[Value(number + 1)] = rest
        else:
            bias = self._bias(donor, constant)
            self._steps[number] = Step.make("+", input=rest, other=Attribute(bias))
            self._calls[bias] = 1
        self._calls.subtract(lost)
        self.found = True
        return True

    def result(self) -> BranchCut:
        """The graph that is left, and its weights."""
        declared = (*self._graph.declared, *(bias.declared for bias in self._biases.values()))
        steps = [step.map_values(self.current_value) for step in self._steps]
        smaller = rebuild_graph(
            self._graph, steps, [self.current_value(value) for value in self._graph.outputs], self._graph.layers, declared
        )
        kept = filter_state(smaller, self._state)
        sources = {name: Source(name) for name in kept}
        for name, bias in self._biases.items():
            if bias.declared in smaller.declared:
                kept[name], sources[name] = bias.values, Source(bias.donor, shape=bias.declared.shape)
        left = {layer.name for layer in smaller.layers}
        removed = tuple(layer.name for layer in self._graph.layers if layer.name not in left)
        return BranchCut(smaller, kept, sources, removed)

    def _inputs(self, step: int) -> list[Value]:
        return [self.current_value(value) for value in self._steps[step].inputs()]

    def _steps_unused_without(self, operand: Value) -> list[int]:
        """The steps whose results nothing reads once a value loses one reader."""
        lost: Counter[Value] = Counter()
        gone: list[int] = []
        pending = [operand]
        while pending:
            value = pending.pop()
            lost[value] += 1
            if value.index and lost[value] == self.reads[value]:
                gone.append(value.index - 1)
                pending += self._inputs(value.index - 1)
        return gone

    def _gradient_reaches_others(self, operand: Value, lost: Mapping[str, int]) -> bool:
        """Whether anything that stays gets a gradient through the constant; searches from it back to the dead weights that make it one.

        Without the branch, the next optimizer step of such a layer would differ.
        """
        pending, seen = [operand], {operand}
        while pending:
            value = pending.pop()
            if not value.index:
                continue
            step = self._steps[value.index - 1]
            if any(self._calls[name] > lost.get(name, 0) for name in _names(step)):
                return True
            derived = self._constants.derived.get(step.layer or "")
            if derived is None or len(derived):
                behind = set(self._inputs(value.index - 1)) - seen
                pending += behind
                seen |= behind
        return False

    def _producer_bias(self, value: Value) -> str:
        """The bias of the layer that makes the value, if it has one: its gradient is the sum of the value's."""
        name = self._steps[value.index - 1].layer if value.index else None
        if name is None or self._calls[name] > 1:
            return ""
        return f"{name}.bias" if f"{name}.bias" in self._state else ""

    def _bias(self, donor: str, constant: Abstract) -> str:
        """Declare a constant that stays and return its name."""
        layer = self._graph.layer(donor.removesuffix(".bias"))
        name = free_name(f"{layer.name}_bias", +self._calls)
        whole = constant.broadcast()
        declared = Declared(name, tuple(whole.known.shape[1:]), "parameter" if layer.trainable else "buffer")
        values = whole.eval_mode.to(self._state[donor]).reshape(declared.shape)
        self._biases[name] = _Bias(declared, values, donor)
        return name


def _names(step: Step) -> set[str]:
    """The layer and declared tensors that a step names."""
    return {name for name in (step.layer, *step.attributes()) if name and name != TRAINING.name}
