"""A hypothesis strategy that draws random LayerGraphs.

`layer_graphs()` draws from every layer class and nearly every function of the catalog, with strides, paddings, groups, shared layers,
residual additions, concatenations, slices, gates, attention, windows, declared tensors, several outputs, and outputs of train mode only. In
train mode BatchNorm needs a batch of two images or more.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from random_moves import MOVES, new_name
from sketch import Sketch

from prunetrain.graph.layergraph import LayerGraph, Value
from prunetrain.graph.shapes import ShapeError

Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def layer_graphs(draw: Draw, max_moves: int = 10) -> LayerGraph:
    """Valid networks of up to `max_moves` operations and what it takes to bring loose ends together."""
    image = st.tuples(st.integers(1, 4), st.integers(3, 7), st.integers(3, 7))
    shape = draw(
        st.one_of(image, image, image, image, image, st.tuples(st.integers(1, 6)), st.tuples(st.integers(1, 4), st.integers(1, 6)))
    )
    net = Sketch(draw(st.sampled_from(["Net", "ResNet20", "x", "input"])), shape)
    for _ in range(draw(st.sampled_from(range(max_moves + 1)))):
        values = [Value(i) for i in range(len(net.steps) + 1) if net.has_rows(Value(i)) and len(net.full_shape(Value(i))) in MOVES]
        value = draw(st.sampled_from([values[-1]] * 4 + values))
        with net.attempt():  # a window larger than the image, say: another move instead
            group = draw(st.sampled_from(MOVES[len(net.full_shape(value))]))
            result = draw(st.sampled_from(group))(draw, net, value)
            if not net.has_rows(result) or len(net.full_shape(result)) not in MOVES:
                raise ShapeError("no move would fit this")
    graph = _with_ends(draw, net)
    return replace(graph, layers=graph.layers[::-1]) if draw(st.sampled_from([False, False, True])) else graph


def _with_ends(draw: Draw, net: Sketch) -> LayerGraph:
    """Adds loose ends up, returns some of them beside the first, or in train mode only."""
    read = {value for step in net.steps for value in step.inputs()}
    ends = [Value(i) for i in range(1, len(net.steps) + 1) if Value(i) not in read]
    if len(ends) > 1 or draw(st.booleans()):
        ends = [head(net, end) for end in ends or [net.x]]
    output, *others = ends or [net.x]
    extra, auxiliary = [], []
    for end in others:
        way = draw(st.sampled_from(["add", "add", "add", "extra", "auxiliary"]))
        if way == "add":
            output = net.call("+", output, end)
        elif way == "auxiliary":
            auxiliary.append(end)
        else:
            extra.append(end)
    if net.steps and draw(st.sampled_from([False] * 7 + [True])):  # something on the way
        extra.append(draw(st.sampled_from([Value(i) for i in range(len(net.steps) + 1) if net.has_rows(Value(i))])))
    return net.graph(output, *extra, auxiliary=tuple(auxiliary))


def head(net: Sketch, value: Value) -> Value:
    """Three outputs of whatever has one row an image."""
    name = new_name(net, "", "fc")
    if len(net.full_shape(value)) == 4:
        return net.classifier(name, value, 3)
    if len(net.full_shape(value)) == 2:
        return net.linear(name, value, 3)
    return net.linear(name, net.call("torch.flatten", value, start_dim=1), 3)
