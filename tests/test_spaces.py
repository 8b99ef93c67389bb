"""Channel spaces: toy networks with ids worked out by hand, and what holds for any network."""

import numpy as np
import pytest
from graphs import Sketch, layer_graphs
from hypothesis import given, settings

from prunetrain.channels.spaces import ChannelSpace, ChannelSpaces, Role, find_spaces
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.shapes import infer_shapes


def ids(spaces: ChannelSpaces, name: str, axis: str) -> list[int]:
    return spaces.ids[name, axis].tolist()


def space_of(spaces: ChannelSpaces, name: str, axis: str = "out") -> ChannelSpace:
    """The one space that an axis belongs to."""
    (number,) = set(spaces.space_of[spaces.ids[name, axis]].tolist())
    return spaces.spaces[number]


def test_chain_with_flatten() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.call("F.relu", net.norm("bn1", net.conv("conv1", net.x, 4, kernel_size=3, padding=1)))
    x = net.call("F.max_pool2d", net.conv("conv2", x, 2, kernel_size=1), kernel_size=2)
    x = net.linear("fc", net.call("torch.flatten", x, start_dim=1), 2)  # 2 channels of 2x2
    spaces = find_spaces(net.graph(x))
    assert {f"{name}.{axis}": found.tolist() for (name, axis), found in spaces.ids.items()} == {
        "conv1.in": [0, 1, 2],
        "conv1.out": [3, 4, 5, 6],
        "bn1.features": [3, 4, 5, 6],
        "conv2.in": [3, 4, 5, 6],
        "conv2.out": [7, 8],
        "fc.in": [7, 7, 7, 7, 8, 8, 8, 8],
        "fc.out": [9, 10],
    }
    assert [values.ravel().tolist() for values in spaces.values[-3:]] == [[7, 8], [7, 7, 7, 7, 8, 8, 8, 8], [9, 10]]
    assert [(space.name, space.channels.tolist()) for space in spaces.spaces] == [
        ("input", [0, 1, 2]),
        ("conv1", [3, 4, 5, 6]),
        ("conv2", [7, 8]),
        ("fc", [9, 10]),
    ]
    assert spaces.frozen_channels().tolist() == [True] * 3 + [False] * 6 + [True] * 2


def test_a_space_reads_as_a_sentence() -> None:
    net = Sketch("Toy", (1, 4, 4))
    x = net.norm("bn1", net.conv("conv1", net.x, 2, kernel_size=1))
    x = net.call("+", x, net.conv("conv2", x, 2, kernel_size=1))
    spaces = find_spaces(net.graph(net.classifier("fc", x, 5)))
    assert [str(space) for space in spaces.spaces] == [
        "input: 1 channel; consumer conv1; frozen: the network's input",
        "conv1: 2 channels; producers conv1, conv2; consumers conv2, fc; carrier bn1",
        "fc: 5 channels; producer fc; frozen: the network's output",
    ]


def test_identity_shortcut_makes_one_space() -> None:
    net = Sketch("Toy", (3, 4, 4))
    stem = net.conv_bn_relu("1", net.x, 4, kernel_size=3, padding=1)
    x = net.conv_bn_relu("2", stem, 6, kernel_size=3, padding=1)
    x = net.norm("bn3", net.conv("conv3", x, 4, kernel_size=3, padding=1))
    x = net.call("F.relu", net.call("+", x, stem))
    spaces = find_spaces(net.graph(net.classifier("fc", x, 2)))
    stream = [3, 4, 5, 6]
    for name, axis in (("conv1", "out"), ("bn1", "features"), ("conv2", "in"), ("conv3", "out"), ("bn3", "features"), ("fc", "in")):
        assert ids(spaces, name, axis) == stream
    assert ids(spaces, "conv2", "out") == ids(spaces, "conv3", "in") == [7, 8, 9, 10, 11, 12]
    assert space_of(spaces, "conv1").members == {
        Role.PRODUCER: ("conv1", "conv3"),
        Role.CONSUMER: ("conv2", "fc"),
        Role.CARRIER: ("bn1", "bn3"),
    }


def test_projection_shortcut_starts_a_space() -> None:
    net = Sketch("Toy", (3, 4, 4))
    stem = net.conv("conv1", net.x, 4, kernel_size=1)
    x = net.call("+", net.conv("conv2", stem, 6, kernel_size=1), net.conv("projection", stem, 6, kernel_size=1))
    spaces = find_spaces(net.graph(net.classifier("fc", x, 2)))
    assert ids(spaces, "conv2", "in") == ids(spaces, "projection", "in") == ids(spaces, "conv1", "out") == [3, 4, 5, 6]
    assert ids(spaces, "conv2", "out") == ids(spaces, "projection", "out") == [7, 8, 9, 10, 11, 12]


def test_a_chain_of_additions_ties_every_operand() -> None:
    net = Sketch("Toy", (3, 4, 4))
    a, b, c = (net.conv(name, net.x, 2, kernel_size=1) for name in ("a", "b", "c"))
    left, right = net.call("+", a, b), net.call("+", b, c)
    spaces = find_spaces(net.graph(net.classifier("fc", net.call("*", left, right), 2)))
    assert ids(spaces, "a", "out") == ids(spaces, "b", "out") == ids(spaces, "c", "out") == [3, 4]


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_conv_carries_its_channels(multiplier: int) -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("conv1", net.x, 3, kernel_size=1)
    x = net.norm("bn", net.conv("depthwise", x, 3 * multiplier, kernel_size=3, padding=1, groups=3))
    spaces = find_spaces(net.graph(net.conv("conv2", x, 2, kernel_size=1)))
    expected = [3, 4, 5] if multiplier == 1 else [3, 3, 4, 4, 5, 5]
    for name, axis in (("depthwise", "out"), ("bn", "features"), ("conv2", "in")):
        assert ids(spaces, name, axis) == expected
    assert space_of(spaces, "conv1").members == {Role.PRODUCER: ("conv1",), Role.CONSUMER: ("conv2",), Role.CARRIER: ("depthwise", "bn")}
    assert ("depthwise", "in") not in spaces.ids


def test_addition_behind_a_multiplier_ties_neighbours() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("conv1", net.x, 2, kernel_size=1)
    x = net.call("+", net.conv("depthwise", x, 4, kernel_size=1, groups=2), net.conv("other", net.x, 4, kernel_size=1))
    spaces = find_spaces(net.graph(net.classifier("fc", x, 2)))
    assert ids(spaces, "other", "out") == [3, 3, 4, 4]


def test_one_channel_in_and_out_is_no_depthwise_conv() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("conv1", net.x, 1, kernel_size=1)
    x = net.conv("conv2", x, 1, kernel_size=3, padding=1)
    spaces = find_spaces(net.graph(net.classifier("fc", x, 2)))
    assert ids(spaces, "conv2", "in") == [3]
    assert ids(spaces, "conv2", "out") == [4]
    assert spaces.roles["conv2", "out"] is Role.PRODUCER


def test_conv_of_few_groups_gives_up_the_same_channels_in_each() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("conv1", net.x, 6, kernel_size=1)
    x = net.conv("conv2", x, 4, kernel_size=1, groups=2)
    spaces = find_spaces(net.graph(net.conv("conv3", x, 2, kernel_size=1)))
    assert ids(spaces, "conv1", "out") == [3, 4, 5, 3, 4, 5]
    assert ids(spaces, "conv2", "in") == [3, 4, 5]
    assert ids(spaces, "conv2", "out") == ids(spaces, "conv3", "in") == [6, 7, 6, 7]


def test_conv_of_many_groups_passes_whole_groups_on() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("conv1", net.x, 6, kernel_size=1)
    x = net.conv("conv2", x, 9, kernel_size=1, groups=3)
    spaces = find_spaces(net.graph(net.conv("conv3", x, 2, kernel_size=1)))
    assert ids(spaces, "conv1", "out") == [3, 3, 4, 4, 5, 5]
    assert ids(spaces, "conv2", "out") == ids(spaces, "conv3", "in") == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert spaces.roles["conv2", "out"] is Role.CARRIER


def test_declared_bias_carries_what_it_is_added_to() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("conv1", net.x, 2, kernel_size=1)
    x = net.call("+", net.declare("bias", (2, 1, 1)), x)
    spaces = find_spaces(net.graph(net.classifier("fc", x, 2)))
    assert ids(spaces, "bias", "features") == ids(spaces, "conv1", "out")
    assert space_of(spaces, "conv1").members[Role.CARRIER] == ("bias",)


def test_layer_called_twice_ties_the_channels_of_both_calls() -> None:
    net = Sketch("Toy", (3, 4, 4))
    a, b = net.conv("a", net.x, 2, kernel_size=1), net.conv("b", net.x, 2, kernel_size=1)
    x = net.call("+", net.conv("shared", a, 4, kernel_size=1), net.layer("shared", "Conv2d", b))
    spaces = find_spaces(net.graph(net.classifier("fc", x, 2)))
    assert ids(spaces, "a", "out") == ids(spaces, "b", "out") == ids(spaces, "shared", "in") == [3, 4]


def test_layer_that_reads_its_own_output_ties_both_sides() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("shared", net.conv("conv1", net.x, 2, kernel_size=1), 2, kernel_size=1)
    spaces = find_spaces(net.graph(net.classifier("fc", net.layer("shared", "Conv2d", x), 2)))
    assert ids(spaces, "shared", "in") == ids(spaces, "shared", "out") == ids(spaces, "conv1", "out") == [3, 4]


def test_padding_goes_with_what_it_is_added_to() -> None:
    net = Sketch("Toy", (3, 4, 4))
    wide = net.call("F.pad", net.conv("conv1", net.x, 1, kernel_size=1), pad=(0, 0, 0, 0, 1, 2))
    x = net.call("+", net.conv("conv2", net.x, 4, kernel_size=1), wide)
    spaces = find_spaces(net.graph(net.classifier("fc", x, 2)))
    assert ids(spaces, "conv2", "out")[1:2] == ids(spaces, "conv1", "out")
    assert len(set(ids(spaces, "conv2", "out"))) == 4
    assert not space_of(spaces, "conv2").frozen


def test_padding_that_is_added_to_nothing_stays() -> None:
    net = Sketch("Toy", (3, 4, 4))
    wide = net.call("F.pad", net.conv("conv1", net.x, 2, kernel_size=1), pad=(0, 0, 0, 0, 1, 0))
    spaces = find_spaces(net.graph(net.conv("conv2", wide, 2, kernel_size=1)))
    assert spaces.frozen_channels()[ids(spaces, "conv2", "in")].tolist() == [True, False, False]


def test_gate_ties_what_it_multiplies() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("conv1", net.x, 2, kernel_size=1)
    gate = net.conv("excite", net.call("F.adaptive_avg_pool2d", x, output_size=1), 2, kernel_size=1)
    x = net.call("*", x, net.call("torch.sigmoid", gate))
    spaces = find_spaces(net.graph(net.classifier("fc", x, 2)))
    assert ids(spaces, "excite", "out") == ids(spaces, "conv1", "out") == [3, 4]


def test_single_channel_broadcast_over_many_is_frozen() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x, mask = net.conv("conv1", net.x, 2, kernel_size=1), net.conv("mask", net.x, 1, kernel_size=1)
    spaces = find_spaces(net.graph(net.classifier("fc", net.call("*", x, mask), 2)))
    assert space_of(spaces, "mask").frozen == "broadcast by *"
    assert space_of(spaces, "conv1").frozen == ""


@pytest.mark.parametrize("first", ["channels", "another dimension"])
def test_linear_layer_over_another_dimension_is_frozen_even_if_it_is_called_on_channels_too(first: str) -> None:
    net = Sketch("Toy", (3, 2, 2))
    a, b = net.conv("a", net.x, 4, kernel_size=1), net.conv("b", net.x, 4, kernel_size=1)
    channels = net.call("torch.flatten", net.call("F.adaptive_avg_pool2d", a, output_size=1), start_dim=1)  # 4
    columns = net.call("torch.flatten", b, start_dim=2)  # 4x4: channels, pixels
    if first == "channels":
        x, y = net.linear("shared", channels, 4), net.layer("shared", "Linear", columns)
    else:
        y, x = net.linear("shared", columns, 4), net.layer("shared", "Linear", channels)
    spaces = find_spaces(net.graph(net.call("+", x, net.call("torch.flatten", net.linear("fc", y, 1), start_dim=1))))
    for name, axis in (("a", "out"), ("b", "out"), ("shared", "in"), ("shared", "out")):
        assert space_of(spaces, name, axis).frozen


def test_flatten_behind_the_channels_leaves_them_alone() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.call("torch.flatten", net.conv("conv1", net.x, 2, kernel_size=1), start_dim=2)  # 2x16
    spaces = find_spaces(net.graph(x))
    assert spaces.values[-1].shape == (1, 2, 1)
    assert spaces.values[-1].ravel().tolist() == [3, 4]


def assert_channels_make_a_partition(graph: LayerGraph, spaces: ChannelSpaces) -> None:
    members = np.concatenate([space.channels for space in spaces.spaces])
    assert sorted(members.tolist()) == list(range(spaces.num_channels))
    for number, space in enumerate(spaces.spaces):
        assert (spaces.space_of[space.channels] == number).all()
    sizes = {(layer.name, axis): layer[size] for layer in graph.layers for axis, size in layer.signature.sizes.items()}
    sizes |= {(layer.name, "in"): layer["in_channels"] // layer.conv_groups for layer in graph.layers if layer.is_convolution}
    sizes |= {(tensor.name, "features"): tensor.shape[spaces.dims[tensor.name]] for tensor in graph.declared if tensor.name in spaces.dims}
    for axis, found in spaces.ids.items():
        assert sizes[axis] in (len(found), (len(found),))
        if spaces.roles[axis] is Role.PRODUCER:
            assert len(set(spaces.space_of[found].tolist())) == 1
    frozen = spaces.frozen_channels()
    for grid, shape in zip(spaces.values, infer_shapes(graph), strict=True):
        assert grid.ndim == len(shape)
        assert all(own in (1, size) for own, size in zip(grid.shape, shape, strict=True))
        assert sum(size > 1 for size in grid.shape) <= 1 or frozen[grid].all()


@given(layer_graphs())
@settings(max_examples=200, derandomize=True)
def test_every_channel_is_in_exactly_one_space(graph: LayerGraph) -> None:
    spaces = find_spaces(graph)
    assert_channels_make_a_partition(graph, spaces)
    frozen = spaces.frozen_channels()
    assert frozen[spaces.values[0]].all()
    for output in graph.outputs:
        assert frozen[spaces.values[output.index]].all()
    for space in spaces.spaces:
        assert str(space).startswith(f"{space.name}: {len(space.channels)} channel")


@given(layer_graphs())
@settings(max_examples=50, derandomize=True)
def test_names_of_spaces_are_unique(graph: LayerGraph) -> None:
    names = [space.name for space in find_spaces(graph).spaces]
    assert sorted(set(names)) == sorted(names)
