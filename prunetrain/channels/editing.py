"""The last step of every change to a graph: put in the new steps, drop what they leave unused, and reduce the state dict."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from prunetrain.graph.layergraph import Declared, Layer, LayerGraph, Step, Value


def rebuild_graph(
    graph: LayerGraph, steps: Sequence[Step], outputs: Sequence[Value], layers: Iterable[Layer], declared: Iterable[Declared]
) -> LayerGraph:
    """Return a graph with new steps, without results that nothing reads and layers and tensors that no step names.

    Args:
        graph: the original graph: its name, input and kinds of outputs stay.
        steps: the new steps; `Value(i)` is what step `i - 1` of these returns.
        outputs: what the new graph returns in train mode, in the order of `graph.outputs`.
        layers: the layers that the steps may call.
        declared: the tensors that they may read.
    """
    needed = {value.index for value in outputs}
    for number in range(len(steps), 0, -1):
        if number in needed:
            needed |= {value.index for value in steps[number - 1].inputs()}
    new = {Value(0): Value(0)}
    kept: list[Step] = []
    for number, step in enumerate(steps, start=1):
        if number in needed:
            kept.append(step.map_values(lambda value: new[value]))
            new[Value(number)] = Value(len(kept))
    used = {name for step in kept for name in (step.layer, *step.attributes()) if name}
    output, *others = (new[value] for value in outputs)
    return replace(
        graph,
        layers=tuple(layer for layer in layers if layer.name in used),
        steps=tuple(kept),
        output=output,
        declared=tuple(tensor for tensor in declared if tensor.name in used),
        extra=tuple(others[: len(graph.extra)]),
        auxiliary=tuple(others[len(graph.extra) :]),
    )


def filter_state(graph: LayerGraph, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict that belong to the layers of a graph, or are declared in it."""
    names = {layer.name for layer in graph.layers} | {tensor.name for tensor in graph.declared}
    return {name: tensor for name, tensor in state.items() if name.partition(".")[0] in names}
