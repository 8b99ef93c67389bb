"""Residual branches that compute nothing any more: an addition with an operand that is constant in every channel.

In: a graph, its weights, its constants. Out: the graph without such branches, and the weights of what is left. A constant other than
zero stays as a
declared parameter; it takes the place of the bias at the end of the branch, so the optimizer goes on with it as with that bias.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from prunetrain.channels.constants import Constants
from prunetrain.channels.sources import Source
from prunetrain.graph.layergraph import Argument, Attribute, Declared, LayerGraph, Step, Value
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
        name = _free_name(graph, donor)
        shape = tuple(constant.broadcast().known.shape[1:])
        declared = (Declared(name, shape),)
        steps[number] = Step.make("+", input=rest, other=Attribute(name))
        replaced: dict[Value, Argument] = {}
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


def _free_name(graph: LayerGraph, donor: str) -> str:
    base = f"{donor.split('.', maxsplit=1)[0]}_bias"
    taken = {layer.name for layer in graph.layers} | {tensor.name for tensor in graph.declared}
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def _simplify(graph: LayerGraph, steps: list[Step], replaced: dict[Value, Argument], declared: tuple[Declared, ...]) -> LayerGraph:
    """The graph of these steps without results that nobody reads; `replaced` says what to read instead of a value."""

    def resolve(value: Value) -> Argument:
        return replaced.get(value, value)

    def read(value: Value) -> Value:
        found = resolve(value)
        assert isinstance(found, Value)
        return found

    outputs = [read(value) for value in graph.outputs]
    steps = [step.map_values(resolve) for step in steps]
    needed = {value.index for value in outputs}
    for number in range(len(steps), 0, -1):
        if number in needed:
            needed |= {value.index for value in steps[number - 1].inputs()}
    new_index = {0: 0}
    kept_steps = []
    for number, step in enumerate(steps, start=1):
        if number in needed:
            kept_steps.append(step.map_values(lambda value: Value(new_index[value.index])))
            new_index[number] = len(kept_steps)
    used = {name for step in kept_steps for name in (step.layer, *step.attributes()) if name}
    output, *others = (Value(new_index[value.index]) for value in outputs)
    return replace(
        graph,
        layers=tuple(layer for layer in graph.layers if layer.name in used),
        steps=tuple(kept_steps),
        output=output,
        declared=tuple(tensor for tensor in (*graph.declared, *declared) if tensor.name in used),
        extra=tuple(others[: len(graph.extra)]),
        auxiliary=tuple(others[len(graph.extra) :]),
    )
