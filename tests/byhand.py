"""What tests by hand need: networks with weights that are taken away by name, cuts that are held to the contract, and what they left."""

from typing import Any

from graphs import Sketch
from networks import State, assert_same_function, assert_same_step, new_state, well_conditioned

from prunetrain.channels.slicing import Cut, gate, propose_cut
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import LayerGraph, Step, Value
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render

THRESHOLD = 1e-4


def made(net: Sketch, output: Value, *extra: Value, auxiliary: tuple[Value, ...] = ()) -> tuple[LayerGraph, State]:
    """The network, and random weights."""
    graph = well_conditioned(net.graph(output, *extra, auxiliary=auxiliary))
    return graph, new_state(graph, 0)


def silence(state: State, name: str, *filters: int) -> None:
    """Filters without weights and bias."""
    for tensor in ("weight", "bias"):
        state[f"{name}.{tensor}"][list(filters)] = 0


def ignore(state: State, name: str, *inputs: int) -> None:
    """Inputs that a layer does not read."""
    state[f"{name}.weight"][:, list(inputs)] = 0


def cut_of(graph: LayerGraph, state: State, granularity: int = 1, *, gating: bool = False) -> Cut:
    """The cut; it is held to the contract."""
    proposal = propose_cut(graph, state, threshold=THRESHOLD, criterion="either")
    cut = proposal.apply(proposal.plan(granularity))
    if gating:
        cut = gate(cut, threshold=THRESHOLD, granularity=granularity)
    assert parse(render(cut.graph)) == cut.graph
    assert_same_function(graph, state, cut)
    for optimizer in ("sgd", "adamw"):
        assert_same_step(graph, state, cut, optimizer=optimizer, running_means=False)
    return cut


def ids(graph: LayerGraph, name: str, axis: str) -> list[int]:
    """The channel ids of an axis, counted from 0."""
    found = find_spaces(graph).ids[name, axis]
    counted: list[int] = (found - found.min()).tolist()
    return counted


def frozen(graph: LayerGraph, name: str) -> str:
    """Why the outputs of a layer are frozen."""
    spaces = find_spaces(graph)
    return spaces.spaces[int(spaces.space_of[spaces.ids[name, "out"][0]])].frozen


def width(cut: Cut, *names: str) -> list[int]:
    """How many outputs layers have."""
    layers = [cut.graph.layer(name) for name in names]
    return [layer[layer.signature.sizes["out"]] for layer in layers]


def steps(cut: Cut, target: str) -> list[dict[str, Any]]:
    """The arguments of all calls of a function, but for what they read."""
    found: list[Step] = [step for step in cut.graph.steps if step.target == target]
    return [{name: argument for name, argument in step.arguments if name not in ("input", "tensors", "index")} for step in found]
