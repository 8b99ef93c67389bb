"""Residual branches that compute nothing any more: an addition with an operand that is constant in every channel.

In: a graph, its weights, its constants. Out: the graph without such branches, and the weights of what is left. A constant other than
zero stays as a declared parameter; it takes the place of the bias at the end of the branch, so the optimizer goes on with it as with that
bias.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prunetrain.channels.constants import Constants
from prunetrain.channels.editing import edited, free_name
from prunetrain.channels.sources import Source
from prunetrain.graph.layergraph import Attribute, Declared, LayerGraph, Step, Value
from prunetrain.graph.shapes import infer_shapes


@dataclass(frozen=True)
class BranchCut:
    """A graph without one branch. `removed` names the layers that went; `state` and `sources` are the weights and where they came from."""

    graph: LayerGraph
    state: dict[str, Tensor]
    sources: dict[str, Source]
    removed: tuple[str, ...]


def remove_branch(graph: LayerGraph, state: Mapping[str, Tensor], constants: Constants, tolerance: float) -> BranchCut | None:
    """Remove the first branch that is constant, or None if there is none.

    Args:
        graph: the network.
        state: its state dict.
        constants: what `find_constants` says of the two.
        tolerance: how far the constant may differ between eval and train mode.
    """
    shapes = infer_shapes(graph)
    for number, step in enumerate(graph.steps):
        if step.target != "+":
            continue
        for branch, other in (("other", "input"), ("input", "other")):
            operand, rest = step[branch], step[other]
            if not isinstance(operand, Value) or not isinstance(rest, Value) or shapes[operand.index] != shapes[rest.index]:
                continue
            if not bool(constants.values[operand.index].agrees(tolerance).all()):
                continue
            cut = _without(graph, state, constants, number=number, operand=operand, rest=rest)
            if cut is not None:
                return cut
    return None


def _without(
    graph: LayerGraph, state: Mapping[str, Tensor], constants: Constants, *, number: int, operand: Value, rest: Value
) -> BranchCut | None:
    constant = constants.values[operand.index]
    declared: tuple[Declared, ...] = ()
    steps = list(graph.steps)
    donor = ""
    if not bool(constant.zero.all()):
        donor = _bias_behind(graph, state, operand)
        if not donor:
            return None
        taken = {layer.name for layer in graph.layers} | {tensor.name for tensor in graph.declared}
        name = free_name(f"{donor.split('.', maxsplit=1)[0]}_bias", taken)
        shape = tuple(constant.broadcast().known.shape[1:])
        declared = (Declared(name, shape),)
        steps[number] = Step.make("+", input=rest, other=Attribute(name))
        replaced: dict[Value, Value] = {}
    else:
        replaced = {Value(number + 1): rest}
    smaller = _simplify(graph, steps, replaced, declared)
    names = {layer.name for layer in smaller.layers} | {tensor.name for tensor in smaller.declared}
    if names & _felt_behind(graph, constants, operand):
        return None
    kept = {name: tensor for name, tensor in state.items() if name.split(".")[0] in names}
    sources = {name: Source(name) for name in kept}
    for tensor in declared:
        kept[tensor.name] = constant.broadcast().eval_mode.to(state[donor]).reshape(tensor.shape)
        sources[tensor.name] = Source(donor, shape=tensor.shape)
    removed = tuple(layer.name for layer in graph.layers if layer.name not in names)
    return BranchCut(smaller, kept, sources, removed)


def _felt_behind(graph: LayerGraph, constants: Constants, operand: Value) -> set[str]:
    """The layers and tensors that feel in training what a constant is used for: from it back to the dead weights that make it one.

    If one of them stayed while the branch goes, its next step would be another.
    """
    felt: set[str] = set()
    pending = [operand]
    while pending:
        value = pending.pop()
        if not value.index:
            continue
        step = graph.steps[value.index - 1]
        felt |= {name for name in (step.layer, *step.attributes()) if name}
        derived = constants.derived.get(step.layer or "")
        if derived is None or len(derived):
            pending += step.inputs()
    return felt


def _bias_behind(graph: LayerGraph, state: Mapping[str, Tensor], value: Value) -> str:
    """The bias whose gradient is that of the value, summed: that of the layer that makes it, if it has one."""
    name = graph.steps[value.index - 1].layer if value.index else None
    if name is None or [step.layer for step in graph.steps].count(name) > 1:
        return ""
    return f"{name}.bias" if f"{name}.bias" in state else ""


def _simplify(graph: LayerGraph, steps: list[Step], replaced: Mapping[Value, Value], declared: tuple[Declared, ...]) -> LayerGraph:
    """The graph of these steps without results that nobody reads; `replaced` says what to read instead of a value."""

    def read(value: Value) -> Value:
        return replaced.get(value, value)

    return edited(
        graph,
        [step.map_values(read) for step in steps],
        [read(value) for value in graph.outputs],
        graph.layers,
        (*graph.declared, *declared),
    )
