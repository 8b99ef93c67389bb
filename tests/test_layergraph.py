"""The LayerGraph: what it refuses, and the one form of what it accepts."""

from dataclasses import replace
from typing import Any

import pytest
from graphs import auxiliary, chain, gating, layer_graphs, residual, without_a_branch
from hypothesis import given, settings

from prunetrain.graph.layergraph import (
    TRAINING,
    Attribute,
    BatchSize,
    Declared,
    GraphError,
    Layer,
    LayerGraph,
    Step,
    Value,
    signature_of,
)

CONV = Layer.make("conv", "Conv2d", in_channels=3, out_channels=4, kernel_size=3)
CALL = Step.make("self.conv", input=Value(0))
RELU = Step.make("F.relu", input=Value(1))


def graph(**changes: Any) -> LayerGraph:
    parts = {"class_name": "Net", "input_shape": (3, 8, 8), "layers": (CONV,), "steps": (CALL, RELU), "output": Value(2)}
    return LayerGraph(**{**parts, **changes})


def add(left: Value | Attribute, right: Value | Attribute) -> Step:
    return Step.make("+", input=left, other=right)


@pytest.mark.parametrize(
    ("changes", "message", "part"),
    [
        ({"class_name": "3x3"}, "'3x3' cannot name a class", None),
        ({"class_name": "class"}, "'class' cannot name a class", None),
        ({"class_name": "_Net"}, "'_Net' cannot name a class", None),
        ({"class_name": "Netz\u00e9"}, "cannot name a class", None),
        ({"class_name": "Net(nn.Module): import os #"}, "cannot name a class", None),
        ({"class_name": "nn"}, "'nn' cannot name a class", None),
        ({"class_name": "super"}, "'super' cannot name a class", None),
        ({"input_shape": ()}, "the input shape needs sizes of at least 1", None),
        ({"input_shape": (3, 0, 8)}, "the input shape needs sizes of at least 1", None),
        ({"layers": (Layer("forward", "Linear", ()),)}, "'forward' cannot name a layer", "forward"),
        ({"layers": (Layer("training", "Linear", ()),)}, "'training' cannot name a layer", "training"),
        ({"layers": (Layer("lambda", "Linear", ()),)}, "'lambda' cannot name a layer", "lambda"),
        ({"layers": (Layer("a.b", "Linear", ()),)}, "'a.b' cannot name a layer", "a.b"),
        ({"declared": (Declared("state_dict", (4,)),)}, "'state_dict' cannot name a layer", "state_dict"),
        ({"layers": (CONV, CONV)}, "conv is defined twice", None),
        ({"declared": (Declared("conv", (4,)),)}, "conv is defined twice", None),
        ({"layers": ()}, "self.conv is called but not defined", 0),
        ({"steps": (CALL, add(Value(1), Attribute("bias")))}, "self.bias is read but not defined", 1),
        ({"steps": (CALL, Step.make("F.relu", input=Value(2)))}, "step 1 reads a result that does not exist yet", 1),
        ({"steps": (CALL, Step.make("F.relu", input=Value(-1)))}, "step 1 reads a result that does not exist yet", 1),
        ({"output": Value(3)}, "the output is not a result of the network", None),
        ({"output": Value(-1)}, "the output is not a result of the network", None),
        ({"extra": (Value(3),)}, "the output is not a result of the network", None),
        ({"auxiliary": (Value(3),)}, "the output is not a result of the network", None),
        ({"output": Value(1)}, "the result of F.relu is never used", 1),
        ({"steps": (CALL, Step.make("F.relu", input=Value(0)))}, "the result of self.conv is never used", 0),
        ({"layers": (CONV, Layer.make("fc", "Linear", in_features=1, out_features=1))}, "self.fc is never used", "fc"),
        ({"declared": (Declared("bias", (4, 1, 1)),)}, "self.bias is never used", "bias"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str, part: object) -> None:
    with pytest.raises(GraphError) as caught:
        graph(**changes)
    assert message in str(caught.value)
    assert caught.value.part == part


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 0),), "self.bias needs sizes of at least 1"),
        (((4,), "weight"), "self.bias cannot be a weight of float32"),
        (((4,), "buffer", "float64"), "self.bias cannot be a buffer of float64"),
        (((4,), "parameter", "int64"), "self.bias cannot be a parameter of int64"),
        (((4,), "buffer", "int64", (0, 1, 2, 3)), "self.bias: an index needs positions, and no other role takes any"),
        (((2,), "index", "int64"), "self.bias: an index needs positions, and no other role takes any"),
        (((2,), "index", "int64", (0, 1, 2)), "self.bias needs int64 positions from 0, as many as its shape says"),
        (((2,), "index", "int64", (0, -1)), "self.bias needs int64 positions from 0, as many as its shape says"),
        (((2,), "index", "float32", (0, 1)), "self.bias needs int64 positions from 0, as many as its shape says"),
        (((4,), "buffer", "float32", (), False), "self.bias: only a parameter can be frozen"),
    ],
)
def test_declared_tensors_refuse(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(GraphError) as caught:
        Declared("bias", *arguments)
    assert (str(caught.value), caught.value.part) == (message, "bias")


def test_declared_tensors() -> None:
    assert Declared.index("reads", (0, 2)) == Declared("reads", (2,), "index", "int64", (0, 2))
    assert Declared("scale", ()).shape == ()
    assert [tensor.values for tensor in gating().declared] == [(0, 2, 5), (1, 5)]


def test_an_empty_network_returns_its_input() -> None:
    assert graph(layers=(), steps=(), output=Value(0)).uses() == {Value(0): []}


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("LSTM", {}, "nn.LSTM is not a layer that prunetrain knows"),
        ("Linear", {"in_features": 3}, "argument 'out_features' is missing"),
        ("Linear", {"in_features": 3, "out_features": "4"}, "out_features must be a whole number from 1, not '4'"),
        ("Conv2d", {"in_channels": 3, "out_channels": 4, "kernel_size": (3, 3, 3)}, "kernel_size must be"),
    ],
)
def test_layers_refuse(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layer.make("layer", kind, **arguments)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("os.system", {"input": Value(0)}, "os.system is not a function that prunetrain knows"),
        ("F.relu", {"input": 3}, "input must be a tensor, not 3"),
        ("F.relu", {"input": TRAINING}, "input must be a tensor"),
        ("+", {"input": 1, "other": 2}, "must read a result of the network"),
        ("+", {"input": Value(0), "other": "1"}, "other must be a tensor or a number, not '1'"),
        ("+", {"input": Value(0), "other": TRAINING}, "other must be a tensor or a number"),
        ("@", {"input": Value(0), "other": 2}, "other must be a tensor, not 2"),
        ("torch.cat", {"tensors": Value(0)}, "tensors must be a tuple of tensors"),
        ("torch.cat", {"tensors": (1, 2)}, "tensors must be a tuple of tensors"),
        ("torch.cat", {"tensors": (Value(0), 1)}, "tensors must be a tuple of tensors"),
        ("torch.cat", {"tensors": (Value(0), TRAINING)}, "tensors must be a tuple of tensors"),
        ("torch.reshape", {"input": Value(0), "shape": (BatchSize(Value(0)), 0)}, "shape must be a tuple of sizes"),
        ("torch.reshape", {"input": Value(0), "shape": (Value(0), 2)}, "shape must be a tuple of sizes"),
        ("torch.reshape", {"input": Value(0), "shape": BatchSize(Value(0))}, "shape must be a tuple of sizes"),
        ("torch.permute", {"input": Value(0), "dims": (BatchSize(Value(0)), 1)}, "dims must be a whole number or a tuple of them"),
        ("+", {"input": Value(0)}, "argument 'other' is missing"),
        ("self.conv", {"input": Value(0), "other": Value(0)}, "unknown argument 'other'"),
        ("F.dropout", {"input": Value(0), "training": Value(0)}, "training must be self.training, True or False"),
        ("F.dropout", {"input": Value(0), "training": Attribute("bias")}, "training must be self.training, True or False"),
        ("F.dropout", {"input": Value(0), "p": TRAINING}, "p must be a number from 0 to 1"),
    ],
)
def test_steps_refuse(target: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        Step.make(target, **arguments)


def test_arguments_have_one_form() -> None:
    plain = Layer.make("conv", "Conv2d", in_channels=3, out_channels=4, kernel_size=3)
    spelled = Layer.make(
        "conv", "Conv2d", kernel_size=(3, 3), out_channels=4, in_channels=3, stride=(1, 1), bias=True, padding_mode="zeros"
    )
    assert spelled == plain
    assert plain.arguments == (("in_channels", 3), ("out_channels", 4), ("kernel_size", 3))
    assert Step.make("F.max_pool2d", ceil_mode=False, kernel_size=(2, 2), input=Value(0), stride=None) == Step.make(
        "F.max_pool2d", input=Value(0), kernel_size=2
    )


def test_arguments_that_are_left_out_read_as_defaults() -> None:
    assert (CONV["stride"], CONV["bias"], CONV["kernel_size"]) == (1, True, 3)
    assert Step.make("F.dropout", input=Value(0))["p"] == 0.5
    with pytest.raises(KeyError):
        CONV["momentum"]


def test_with_arguments_changes_and_drops() -> None:
    changed = CONV.with_arguments(out_channels=2, stride=(2, 2))
    assert changed.arguments == (("in_channels", 3), ("out_channels", 2), ("kernel_size", 3), ("stride", 2))
    assert changed.with_arguments(stride=1, out_channels=4) == CONV


def test_a_step_tells_what_it_reads() -> None:
    step = Step.make("F.dropout", input=Value(3), p=0.1, training=TRAINING)
    assert (step.layer, step.inputs(), step.attributes()) == (None, (Value(3),), ("training",))
    assert (CALL.layer, CALL.inputs(), CALL.attributes()) == ("conv", (Value(0),), ())
    assert add(Value(1), Attribute("bias")).map_values(lambda v: Value(v.index + 1)) == add(Value(2), Attribute("bias"))


def test_steps_tell_what_they_read_inside_tuples() -> None:
    cat = Step.make("torch.cat", tensors=(Value(2), Attribute("token"), Value(1)), dim=1)
    assert (cat.inputs(), cat.operands(), cat.attributes()) == ((Value(2), Value(1)), (Value(2), Attribute("token"), Value(1)), ("token",))
    grown = Step.make("torch.broadcast_to", input=Attribute("token"), size=(BatchSize(Value(3)), -1, 4))
    assert (grown.inputs(), grown.operands(), grown.attributes()) == ((Value(3),), (Attribute("token"),), ("token",))
    moved = [step.map_values(lambda value: Value(value.index + 1)) for step in (cat, grown)]
    assert moved[0]["tensors"] == (Value(3), Attribute("token"), Value(2))
    assert moved[1]["size"] == (BatchSize(Value(4)), -1, 4)


def test_outputs_and_what_runs_in_train_mode_only() -> None:
    graph = auxiliary()
    assert graph.outputs == (graph.output, *graph.extra, *graph.auxiliary)
    named = {graph.steps[number].layer for number in graph.in_training_only} - {None}
    assert named == {"aux1_conv1", "aux1_bn1", "aux1_fc1", "aux1_fc2", "aux2"}
    assert residual().in_training_only == frozenset()
    both = replace(graph, extra=(*graph.extra, graph.auxiliary[1]), auxiliary=graph.auxiliary[:1])
    assert {both.steps[number].layer for number in both.in_training_only} - {None} == {"aux2"}


def test_declared_tensors_are_in_order_of_first_use() -> None:
    a, b = Declared("a", (4, 1, 1)), Declared("b", (4, 1, 1))
    steps = (CALL, add(Value(1), Attribute("b")), add(Value(2), Attribute("a")), add(Value(3), Attribute("b")))
    assert graph(steps=steps, output=Value(4), declared=(a, b)).declared == (b, a)
    assert graph(steps=steps, output=Value(4), declared=(a, b)) == graph(steps=steps, output=Value(4), declared=(b, a))


def test_layer_by_name() -> None:
    assert chain().layer("fc").kind == "Linear"
    with pytest.raises(KeyError):
        chain().layer("fc2")


def test_uses_count_a_step_that_reads_twice_twice() -> None:
    doubled = graph(steps=(CALL, add(Value(1), Value(1))))
    assert doubled.uses() == {Value(0): [0], Value(1): [1, 1], Value(2): []}


def test_uses_of_a_shortcut() -> None:
    uses = residual().uses()
    assert [len(uses[Value(i)]) for i in (3, 10)] == [2, 2]  # what enters a block is read by its first convolution and its addition
    assert sum(len(readers) for readers in without_a_branch().uses().values()) == len(without_a_branch().steps) + 1


@settings(max_examples=30)
@given(layer_graphs())
def test_everything_is_used(graph: LayerGraph) -> None:
    unused = [value for value, readers in graph.uses().items() if not readers]
    assert set(unused) <= set(graph.outputs)
    assert [value.index for value, _ in graph.results()] == list(range(1, len(graph.steps) + 1))


def test_functions_outside_the_catalog_have_no_signature() -> None:
    assert signature_of("self.anything").names() == ("input",)
    with pytest.raises(ValueError, match=r"F\.rrelu is not a function"):
        signature_of("F.rrelu")
