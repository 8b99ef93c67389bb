"""Shapes agree with torch on real input, whatever the batch; costs agree with figures worked out by hand and with torch's own counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Sketch, chain, depthwise, head, layer_graphs, residual, without_a_branch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from prunetrain import zoo
from prunetrain.graph.costs import costs, out_channels, parameters
from prunetrain.graph.functions import ELEMENTWISE
from prunetrain.graph.layergraph import Attribute, BatchSize, Declared, GraphError, Layer, LayerGraph, Step, Value
from prunetrain.graph.load import instantiate
from prunetrain.graph.render import render
from prunetrain.graph.shapes import ShapeError, check_shapes, infer_shapes
from prunetrain.graph.trace import trace
from prunetrain.graph.windows import Shape


def one_layer(shape: Shape, kind: str, **arguments: Any) -> LayerGraph:
    layer = Layer.make("layer", kind, **arguments)
    return LayerGraph("Net", shape, (layer,), (Step.make("self.layer", input=Value(0)),), Value(1))


def one_call(shape: Shape, target: str, **arguments: Any) -> LayerGraph:
    return LayerGraph("Net", shape, (), (Step.make(target, input=Value(0), **arguments),), Value(1))


BATCH = 5  # another number than the sizes in this file, so that no dimension is taken for the batch


def ours(graph: LayerGraph) -> Shape | None:
    """The shape of the last result with `BATCH` images; None if something does not fit."""
    try:
        return infer_shapes(graph, BATCH)[-1]
    except ShapeError:
        return None


def theirs(call: Callable[..., torch.Tensor], *shapes: Shape, **arguments: Any) -> Shape | None:
    """The shape that torch makes, where the first tensor is a batch; None if it refuses."""
    first, *others = shapes
    try:
        return tuple(call(torch.zeros(BATCH, *first), *map(torch.zeros, others), **arguments).shape)
    except (RuntimeError, ValueError, IndexError):
        return None


def pair(low: int, high: int) -> st.SearchStrategy[Any]:
    return st.one_of(st.integers(low, high), st.tuples(st.integers(low, high), st.integers(low, high)))


images = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=300)
@given(
    shape=images,
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2)),
    kernel_size=pair(1, 4),
    stride=pair(1, 3),
    padding=st.one_of(pair(0, 3), st.sampled_from(["same", "valid"])),
    dilation=pair(1, 3),
    padding_mode=st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]),
)
def test_conv2d_as_torch(shape: Shape, channels: tuple[int, int, int], **arguments: Any) -> None:
    in_channels, out_channels, groups = channels
    arguments |= {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}

    def convolve(images: torch.Tensor) -> torch.Tensor:  # the layer, too, may refuse its arguments
        return nn.Conv2d(**arguments)(images)

    expected = theirs(convolve, shape)
    assert ours(one_layer(shape, "Conv2d", **arguments)) == expected


@settings(max_examples=300)
@given(
    shape=images,
    kernel_size=pair(1, 4),
    stride=st.one_of(st.none(), pair(1, 4)),
    padding=pair(0, 3),
    dilation=pair(1, 3),
    ceil_mode=st.booleans(),
    average=st.booleans(),
)
def test_pooling_as_torch(shape: Shape, dilation: Any, average: bool, **arguments: Any) -> None:
    if not average:
        arguments["dilation"] = dilation
    function, target = (F.avg_pool2d, "F.avg_pool2d") if average else (F.max_pool2d, "F.max_pool2d")
    assert ours(one_call(shape, target, **arguments)) == theirs(function, shape, **arguments)


@settings(max_examples=100)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), start_dim=st.integers(-5, 5), end_dim=st.integers(-5, 5))
def test_flatten_as_torch(shape: Shape, start_dim: int, end_dim: int) -> None:
    expected = theirs(torch.flatten, shape, start_dim=start_dim, end_dim=end_dim)
    assert ours(one_call(shape, "torch.flatten", start_dim=start_dim, end_dim=end_dim)) == expected


@pytest.mark.parametrize("target", sorted(ELEMENTWISE))
def test_elementwise_functions_keep_the_shape(target: str) -> None:
    arguments = {"exponent": 2} if target == "torch.pow" else {}
    assert ours(one_call((3, 4, 6), target, **arguments)) == (BATCH, 3, 4, 6)
    assert ours(one_call((6,), target, **arguments)) == (BATCH, 6)


def test_adaptive_pooling() -> None:
    assert ours(one_call((3, 4, 5), "F.adaptive_avg_pool2d", output_size=(7, 2))) == (BATCH, 3, 7, 2)
    assert ours(one_call((12,), "F.adaptive_avg_pool2d", output_size=1)) is None


@settings(max_examples=100)
@given(
    left=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3).map(tuple),
    right=st.lists(st.sampled_from([1, 2, 3, BATCH]), max_size=4).map(tuple),
    swapped=st.booleans(),
)
def test_adding_a_declared_tensor_as_torch(left: Shape, right: Shape, swapped: bool) -> None:
    operands = {"other": Value(0), "input": Attribute("bias")} if swapped else {"input": Value(0), "other": Attribute("bias")}
    graph = LayerGraph("Net", left, (), (Step.make("+", **operands),), Value(1), (Declared("bias", right),))
    assert ours(graph) == theirs(torch.add, left, right)


def two_values(left: Shape, right: Shape) -> LayerGraph:
    """Adds two results of these shapes, made from the input by pooling and flatten."""
    steps: list[Step] = []
    results = []
    for shape in (left, right):
        steps.append(Step.make("F.adaptive_avg_pool2d", input=Value(0), output_size=shape[1:] if len(shape) == 3 else 1))
        if len(shape) == 1:
            steps.append(Step.make("torch.flatten", input=Value(len(steps)), start_dim=1))
        results.append(Value(len(steps)))
    steps.append(Step.make("+", input=results[0], other=results[1]))
    return LayerGraph("Net", (4, 8, 8), (), tuple(steps), Value(len(steps)))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((4, 6, 6), (4, 6, 6), (BATCH, 4, 6, 6)),
        ((4, 6, 6), (4, 1, 1), (BATCH, 4, 6, 6)),
        ((4, 1, 6), (4, 6, 1), (BATCH, 4, 6, 6)),
        ((4, 6, 6), (4, 7, 6), None),
        ((4, 6, 4), (4,), None),  # would take the features for pixels and the batch for rows
        ((4,), (4, 6, 4), None),
    ],
)
def test_adding_two_results(left: Shape, right: Shape, expected: Shape | None) -> None:
    assert ours(two_values(left, right)) == expected


def conv(shape: Shape, in_channels: int, kernel_size: int, **arguments: Any) -> LayerGraph:
    return one_layer(shape, "Conv2d", in_channels=in_channels, out_channels=3, kernel_size=kernel_size, **arguments)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (conv((3, 8, 8), 4, 1), "self.layer: takes 4 channels, but its input has 3"),
        (conv((8,), 8, 1), "self.layer: takes 3 dimensions besides the batch, not 8"),
        (conv((3, 2, 8), 3, 3), "self.layer: nothing is left of the image: 1x3x2x8 becomes 1x3x0x6"),
        (conv((4, 8, 8), 4, 1, groups=2), "self.layer: 2 groups do not divide 4 and 3 channels"),
        (conv((3, 8, 8), 3, 3, stride=2, padding="same"), "self.layer: padding 'same' needs stride 1"),
        (conv((3, 2, 8), 3, 3, padding=2, padding_mode="reflect"), "self.layer: padding 2x2 is too wide for an image of 2x8"),
        (one_layer((9,), "Linear", in_features=8, out_features=1), "self.layer: takes 8 channels, but its input has 9"),
        (one_layer((3, 8, 8), "BatchNorm2d", num_features=4), "self.layer: takes 4 channels, but its input has 3"),
        (one_layer((3, 8, 8), "BatchNorm1d", num_features=3), "self.layer: takes 1 or 2 dimensions besides the batch, not 3x8x8"),
        (one_layer((3,), "BatchNorm2d", num_features=3), "self.layer: takes 3 dimensions besides the batch, not 3"),
        (one_call((3, 8, 8), "F.max_pool2d", kernel_size=2, padding=2), "F.max_pool2d: padding 2x2 is more than half the kernel size 2x2"),
        (
            one_call((3, 8, 8), "F.pad", pad=(1, 1), mode="reflect"),
            "F.pad: mode='reflect' needs an amount before and an amount after, for each dimension but the first, or the first two",
        ),
        (one_call((3, 8, 8), "torch.flatten", start_dim=4), "torch.flatten: dimension 4 is out of range for 4 dimensions"),
        (one_call((3, 8, 8), "torch.flatten", start_dim=3, end_dim=1), "torch.flatten: cannot flatten dimensions 3 to 1 of 4"),
        (two_values((4, 6, 6), (4, 3, 3)), "+: 1x4x6x6 and 1x4x3x3 cannot be broadcast"),
        (one_layer((6, 4, 4), "GroupNorm", num_groups=4, num_channels=6), "self.layer: 4 groups do not divide 6 channels"),
        (one_layer((4, 6), "LayerNorm", normalized_shape=4), "self.layer: normalises 4, but its input ends in 6"),
        (
            one_layer((4, 6), "MultiheadAttention", embed_dim=6, num_heads=4, batch_first=True),
            "self.layer: needs batch_first=True and a num_heads that divides embed_dim",
        ),
        (one_call((4, 8, 8), "torch.permute", dims=(0, 2, 1)), "torch.permute: must name all 4 dimensions"),
        (one_call((4, 8, 8), "torch.permute", dims=(0, 2, 1, -2)), "torch.permute: dimensions (0, 2, 1, -2) contain a duplicate"),
        (one_call((4, 8, 8), "[]", dim=1, index=4), "[]: index 4 is out of range for size 4"),
        (one_call((6, 8, 8), "torch.unflatten", dim=1, sizes=(4, -1)), "torch.unflatten: 6 elements do not fit into 4x-1"),
        (one_call((6, 8, 8), "F.channel_shuffle", groups=4), "F.channel_shuffle: 6 channels are not a multiple of 4"),
    ],
)
def test_what_does_not_fit(graph: LayerGraph, message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        infer_shapes(graph)
    assert str(caught.value) == message
    assert caught.value.part == len(graph.steps) - 1


@settings(max_examples=60)
@given(layer_graphs())
def test_random_networks_run_as_inferred(graph: LayerGraph) -> None:
    network = instantiate(render(graph), "net.py").eval()
    with torch.inference_mode():
        output = network(torch.randn(3, *graph.input_shape))
    shapes, outputs = infer_shapes(graph, 3), output if isinstance(output, tuple) else (output,)
    assert [tuple(found.shape) for found in outputs] == [shapes[value.index] for value in (graph.output, *graph.extra)]
    assert costs(graph).params == sum(parameter.numel() for parameter in network.parameters())


LAYER_CASES: dict[str, list[tuple[Shape, dict[str, Any]]]] = {
    "Conv1d": [((4, 9), {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1, "groups": 2})],
    "ConvTranspose2d": [
        ((4, 6, 7), {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": 2, "padding": (1, 0), "output_padding": 1}),
        ((4, 6, 7), {"in_channels": 4, "out_channels": 2, "kernel_size": 3, "dilation": 2, "groups": 2}),
    ],
    "BatchNorm1d": [((4, 7), {"num_features": 4})],
    "LayerNorm": [((3, 4, 7), {"normalized_shape": (4, 7)})],
    "RMSNorm": [((3, 7), {"normalized_shape": 7})],
    "GroupNorm": [((4, 7), {"num_groups": 2, "num_channels": 4})],
    "InstanceNorm2d": [((4, 6, 7), {"num_features": 4})],
    "PReLU": [((4, 6, 7), {"num_parameters": 4}), ((7,), {})],
    "Linear": [((3, 6, 7), {"in_features": 7, "out_features": 2})],
}


@pytest.mark.parametrize(("kind", "shape", "arguments"), [(kind, *case) for kind, cases in LAYER_CASES.items() for case in cases])
def test_layers_as_torch(kind: str, shape: Shape, arguments: dict[str, Any]) -> None:
    assert ours(one_layer(shape, kind, **arguments)) == theirs(getattr(nn, kind)(**arguments), shape)


def test_what_is_computed_from_declared_tensors_alone_has_no_batch() -> None:
    bias = Step.make("torch.unsqueeze", input=Attribute("bias"), dim=0)
    graph = LayerGraph("Net", (4, 6), (), (bias, Step.make("+", input=Value(0), other=Value(1))), Value(2), (Declared("bias", (4, 6)),))
    assert [infer_shapes(graph, batch_size)[1] for batch_size in (1, 3)] == [(1, 4, 6)] * 2


def test_windows_are_rows_of_their_own_until_they_are_put_back() -> None:
    split = Step.make("torch.reshape", input=Value(0), shape=(-1, 4))
    for first in (-1, BatchSize(Value(0))):
        graph = LayerGraph("Net", (6, 4), (), (split, Step.make("torch.reshape", input=Value(1), shape=(first, 6, 4))), Value(2))
        check_shapes(graph)
        assert infer_shapes(graph, 2)[1:] == ((12, 4), (2, 6, 4))


@pytest.mark.parametrize(
    "step",
    [
        Step.make("torch.flatten", input=Value(0), start_dim=0, end_dim=1),
        Step.make("torch.reshape", input=Value(0), shape=(-1, 2, 4)),
        Step.make("torch.permute", input=Value(0), dims=(1, 0, 2)),
        Step.make("torch.mean", input=Value(0), dim=0),
        Step.make("[]", input=Value(0), dim=0, index=0),
        Step.make("torch.reshape", input=Value(0), shape=(1, 6, 4)),  # fits one image only
    ],
    ids=lambda step: step.target,
)
def test_outputs_must_not_mix_the_images_of_a_batch(step: Step) -> None:
    graph = LayerGraph("Net", (6, 4), (), (step,), Value(1))
    infer_shapes(graph)
    with pytest.raises(GraphError) as caught:
        check_shapes(graph)
    assert caught.value.part == 0


def test_every_output_is_checked() -> None:
    steps = (Step.make("F.relu", input=Value(0)), Step.make("torch.mean", input=Value(0), dim=0))
    for outputs in ({"extra": (Value(2),)}, {"auxiliary": (Value(2),)}):
        with pytest.raises(GraphError, match="an output must have one row per image, but has shape 6x4 for two images"):
            check_shapes(LayerGraph("Net", (6, 4), (), steps, Value(1), **outputs))


def test_chain_by_hand() -> None:
    total = costs(chain())
    conv1, conv2, fc = 4 * 3 * 9, 6 * 4 * 9, 6 * 5
    assert total.macs == conv1 * 64 + conv2 * 16 + fc
    assert total.params == conv1 + (4 + 4) + (conv2 + 6) + (fc + 5)
    assert total.channels == 4 + 6 + 5
    assert total.activation_elements == 3 * 4 * 64 + 2 * 6 * 16 + 6 + 6 + 5
    assert [(row.name, row.output_shape, row.macs, row.params) for row in total.layers] == [
        ("conv1", (4, 8, 8), conv1 * 64, conv1),
        ("bn1", (4, 8, 8), 0, 8),
        ("conv2", (6, 4, 4), conv2 * 16, conv2 + 6),
        ("fc", (5,), fc, fc + 5),
    ]


def test_functions_with_weights_are_listed_by_the_tensor_that_these_come_from() -> None:
    net = Sketch("Net", (2, 4, 4))
    masked = net.call("*", net.declare("conv1_weight", (5, 2, 3, 3)), net.declare("mask", (5, 2, 3, 3), "buffer"))
    weight = net.call("*", net.declare("gain", (5, 1, 1, 1)), masked)
    x = net.call("F.conv2d", net.x, weight=weight, bias=net.declare("conv1_bias", (5,)), padding=1)
    total = costs(net.graph(net.classifier("fc", x, 3)))
    assert [(row.name, row.kind, row.output_shape, row.channels, row.macs, row.params) for row in total.layers] == [
        ("conv1_weight", "F.conv2d", (5, 4, 4), 5, 5 * 2 * 9 * 16, 5 * 2 * 9),
        ("fc", "Linear", (3,), 3, 15, 18),
    ]
    assert (total.channels, total.params) == (8, 5 * 2 * 9 + 5 + 5 + 18)


def test_depthwise_by_hand() -> None:
    total = costs(depthwise())
    stem, block, fc = 1 * 8 * 9, (8 * 9, 8 * 16), 16 * 4
    assert total.macs == (stem + sum(block)) * 36 + fc
    assert total.params == stem + 16 + sum(block) + 16 + 32 + fc + 4


def test_rectangular_kernels_and_strides_by_hand() -> None:
    conv = one_layer((2, 9, 10), "Conv2d", in_channels=2, out_channels=3, kernel_size=(3, 5), stride=(2, 1), padding=(1, 0))
    assert infer_shapes(conv)[-1] == (1, 3, 5, 6)
    assert costs(conv).params == 3 * 2 * 15 + 3
    assert costs(conv).macs == 3 * 2 * 15 * 30


def test_a_linear_layer_on_rows_counts_every_row() -> None:
    rows = one_layer((7, 4), "Linear", in_features=4, out_features=3)
    assert (costs(rows).macs, costs(rows).params) == (7 * 12, 15)


def test_declared_tensors_are_parameters() -> None:
    removed = costs(residual()).params - costs(without_a_branch()).params
    assert removed == 2 * (8 * 8 * 9 + 16) - 8


def test_a_shared_layer_is_counted_twice_and_stored_once() -> None:
    layer = Layer.make("fc", "Linear", in_features=4, out_features=4)
    steps = (Step.make("self.fc", input=Value(0)), Step.make("self.fc", input=Value(1)))
    total = costs(LayerGraph("Net", (4,), (layer,), steps, Value(2)))
    assert (total.macs, total.params, total.channels) == (32, 20, 4)
    assert [row.params for row in total.layers] == [20, 0]


def test_norms_without_affine_have_no_parameters() -> None:
    assert parameters(Layer.make("bn", "BatchNorm2d", num_features=8, affine=False)) == 0
    assert out_channels(Layer.make("bn", "BatchNorm2d", num_features=8)) is None


def test_pooling_dropout_and_flatten_cost_nothing() -> None:
    conv, fc1, fc2 = 4 * 3 * 25 * 8 * 14, 64 * 12, 12 * 3
    assert costs(head()).macs == conv + fc1 + fc2


@pytest.mark.parametrize(
    ("name", "shape", "classes", "macs"),
    [
        ("resnet20", (3, 32, 32), 10, 40_813_184),  # 40.55M with parameter-free shortcuts, and two projections of 131,072 each
        ("lenet-300-100", (1, 28, 28), 10, 266_200),
        ("lenet5", (1, 28, 28), 10, 2_293_000),
        ("resnet18", (3, 224, 224), 1000, 1_814_073_344),
        ("resnet50", (3, 224, 224), 1000, 4_089_184_256),
        ("vgg16-bn", (3, 224, 224), 1000, 15_470_264_320),
        ("mobilenet-v1", (3, 224, 224), 1000, 568_740_352),
    ],
)
def test_published_macs(name: str, shape: tuple[int, int, int], classes: int, macs: int) -> None:
    with torch.device("meta"):
        model = zoo.build(name, input_shape=shape, num_classes=classes)
        assert costs(trace(model, torch.empty(1, *shape))).macs == macs


@pytest.mark.parametrize("name", zoo.names())
def test_zoo_parameters_and_shapes_as_torch(name: str) -> None:
    shape = (3, 64, 48)
    seen = {}
    with torch.device("meta"):
        model = zoo.build(name, input_shape=shape, num_classes=7).eval()
        graph = trace(model, torch.empty(1, *shape))
        for module_name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(lambda _, __, output, name=module_name: seen.update({name: tuple(output.shape[1:])}))
        model(torch.empty(2, *shape))
    rows = costs(graph).layers
    assert {row.name: row.output_shape for row in rows if row.macs} == {name.replace(".", "_"): s for name, s in seen.items()}
    assert costs(graph).params == sum(parameter.numel() for parameter in model.parameters())


def test_positions_must_be_there() -> None:
    index = Declared.index("reads", (0, 3))
    step = Step.make("torch.index_select", input=Value(0), dim=1, index=Attribute("reads"))
    graph = LayerGraph("Toy", (3, 4, 4), (), (step,), Value(1), (index,))
    with pytest.raises(ShapeError, match="reads has position 3, but the dimension has size 3"):
        infer_shapes(graph)
