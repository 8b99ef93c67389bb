"""Layers and blocks by hand: grouped and transposed convolutions, gates, tokens, transformers, shared layers, several outputs.

Every cut is held to the contract: the same function, and the same next step.
"""

import pytest
import torch
from byhand import cut_of, frozen, ids, ignore, made, silence, steps, width
from graphs import Sketch

from prunetrain.channels.coverage import measure_coverage
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import BatchSize, Value

# Convolutions.


def test_groups_that_are_few_give_up_the_same_positions() -> None:
    """8 channels in 2 groups: input c goes with c + 4, output c with c + 6."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("conv1", net.x, 8, kernel_size=1)
    x = net.conv("grouped", x, 12, kernel_size=3, padding=1, groups=2)
    graph, state = made(net, net.classifier("fc", x, 2))
    assert ids(graph, "conv1", "out") == [0, 1, 2, 3] * 2
    assert ids(graph, "grouped", "in") == [0, 1, 2, 3]
    assert ids(graph, "grouped", "out") == [0, 1, 2, 3, 4, 5] * 2
    ignore(state, "grouped", 2)  # in both groups
    ignore(state, "fc", 1, 7, 3)  # 9 is read, so 3 stays
    cut = cut_of(graph, state)
    layer = cut.graph.layer("grouped")
    assert (layer["in_channels"], layer["out_channels"], layer["groups"]) == (6, 10, 2)
    rows, columns = [0, 2, 3, 4, 5, 6, 8, 9, 10, 11], [0, 1, 3]
    assert torch.equal(cut.state["grouped.weight"], state["grouped.weight"][rows][:, columns])


def test_one_group_of_the_few_reads_what_the_other_does_not() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("grouped", net.conv("conv1", net.x, 8, kernel_size=1), 4, kernel_size=1, groups=2)
    graph, state = made(net, net.classifier("fc", x, 2))
    state["grouped.weight"][:2, 1] = 0
    assert cut_of(graph, state).graph == graph


def test_groups_that_are_many_go_whole() -> None:
    """4 channels in 2 groups, 3 outputs each."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("grouped", net.conv("conv1", net.x, 4, kernel_size=1), 6, kernel_size=1, groups=2)
    graph, state = made(net, net.classifier("fc", x, 2))
    assert ids(graph, "conv1", "out") == [0, 0, 1, 1]
    assert ids(graph, "grouped", "out") == [0, 0, 0, 1, 1, 1]
    ignore(state, "fc", 0, 1, 2, 3)
    cut = cut_of(graph, state)
    layer = cut.graph.layer("grouped")
    assert (layer["in_channels"], layer["out_channels"], layer["groups"]) == (2, 3, 1)
    again = cut_of(cut.graph, cut.state)  # a plain convolution now, of which output 3 of the first network can go alone
    assert width(again, "conv1", "grouped") == [2, 2]


def test_two_grouped_convolutions_in_a_row() -> None:
    """2 groups of 4 tie c and c + 4; 4 groups of 2 tie 2c and 2c + 1: two channels of four."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("first", net.conv("conv1", net.x, 8, kernel_size=1), 8, kernel_size=1, groups=2)
    x = net.conv("second", x, 8, kernel_size=3, padding=1, groups=4)
    graph, state = made(net, net.classifier("fc", x, 2))
    assert ids(graph, "second", "out") == ids(graph, "first", "out") == [0, 0, 1, 1, 0, 0, 1, 1]
    ignore(state, "fc", 0, 1, 4, 5)
    cut = cut_of(graph, state)
    found = [[cut.graph.layer(name)[size] for size in ("in_channels", "out_channels", "groups")] for name in ("first", "second")]
    assert found == [[8, 4, 2], [4, 4, 2]]


def test_depthwise_multiplier_behind_squeeze_and_excitation() -> None:
    """3 channels, a gate each, 2 outputs of each."""
    net = Sketch("Toy", (2, 4, 4))
    x = net.conv("conv1", net.x, 3, kernel_size=1)
    squeezed = net.call("F.relu", net.conv("reduce", net.call("F.adaptive_avg_pool2d", x, output_size=1), 2, kernel_size=1))
    x = net.call("*", net.call("torch.sigmoid", net.conv("expand", squeezed, 3, kernel_size=1)), x)
    x = net.conv("depthwise", x, 6, kernel_size=3, padding=1, groups=3, bias=False)
    graph, state = made(net, net.classifier("fc", x, 2))
    assert ids(graph, "expand", "out") == ids(graph, "reduce", "in") == ids(graph, "conv1", "out") == [0, 1, 2]
    assert ids(graph, "depthwise", "out") == [0, 0, 1, 1, 2, 2]
    ignore(state, "fc", 2, 3, 4)
    ignore(state, "reduce", 1, 2)
    ignore(state, "expand", 0)
    cut = cut_of(graph, state)
    assert width(cut, "conv1", "reduce", "expand", "depthwise") == [2, 1, 2, 4]
    assert torch.equal(cut.state["expand.weight"], state["expand.weight"][[0, 2]][:, [1]])


def test_transposed_convolution() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    x = net.layer("up", "ConvTranspose2d", x, in_channels=4, out_channels=3, kernel_size=2, stride=2)
    graph, state = made(net, net.classifier("fc", x, 2))
    silence(state, "conv1", 3)
    ignore(state, "fc", 1)
    state["up.weight"][0] = 0  # its weight is (in, out, ...)
    cut = cut_of(graph, state)
    assert width(cut, "conv1", "up") == [2, 2]
    assert torch.equal(cut.state["up.weight"], state["up.weight"][[1, 2]][:, [0, 2]])


def test_convolution_over_a_sequence() -> None:
    net = Sketch("Toy", (2, 6))
    x = net.layer("conv1", "Conv1d", net.x, in_channels=2, out_channels=4, kernel_size=3, bias=False)
    x = net.call("F.relu", net.layer("bn1", "BatchNorm1d", x, num_features=4))
    x = net.layer("conv2", "Conv1d", x, in_channels=4, out_channels=3, kernel_size=1)
    graph, state = made(net, net.linear("fc", net.call("torch.flatten", x, start_dim=1), 2))
    assert ids(graph, "fc", "in") == [0] * 4 + [1] * 4 + [2] * 4
    state["conv1.weight"][1], state["bn1.running_mean"][1], state["bn1.bias"][1] = 0, 0, 1.5
    ignore(state, "fc", 8, 9, 10, 11)
    cut = cut_of(graph, state)
    assert width(cut, "conv1", "conv2") == [3, 2]
    assert torch.allclose(cut.state["conv2.bias"], (state["conv2.bias"] + 1.5 * state["conv2.weight"][:, 1, 0])[:2], rtol=1e-12)


# Blocks.


def sequence(net: Sketch, name: str) -> Value:
    """4 features of each pixel, as a sequence."""
    x = net.conv(name, net.x, 4, kernel_size=1)
    return net.call("torch.transpose", net.call("torch.flatten", x, start_dim=2), dim0=1, dim1=2)


def test_one_gate_for_all_channels_stays() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x, mask = net.conv("conv1", net.x, 3, kernel_size=1), net.call("torch.sigmoid", net.conv("mask", net.x, 1, kernel_size=1))
    graph, state = made(net, net.classifier("fc", net.call("*", mask, x), 2))
    assert (frozen(graph, "mask"), frozen(graph, "conv1")) == ("broadcast by *", "")
    ignore(state, "fc", 2)
    assert width(cut_of(graph, state), "conv1", "mask") == [2, 1]


def test_coordinates_beside_the_channels() -> None:
    """Concatenated in the middle of a network (CoordConv, arXiv 1807.03247): one number for each pixel, the same for all images."""
    net = Sketch("Toy", (2, 3, 4))
    x = net.conv("conv1", net.x, 5, kernel_size=1)
    rows = net.call("torch.broadcast_to", net.declare("rows", (1, 1, 3, 4)), size=(BatchSize(x), -1, -1, -1))
    graph, state = made(net, net.classifier("fc", net.conv("conv2", net.cat(x, rows), 3, kernel_size=1), 2))
    ignore(state, "conv2", 1, 3, 5)
    cut = cut_of(graph, state)
    assert width(cut, "conv1") == [3]
    assert (cut.graph.layer("conv2")["in_channels"], cut.graph.declared) == (4, graph.declared)
    assert "one channel of each space stays" in {space.why for space in measure_coverage(graph, find_spaces(graph)).spaces}


@pytest.mark.parametrize("images", [True, False])
def test_layer_scale(images: bool) -> None:
    """A number a channel, (C, 1, 1) for images and (C,) for sequences; a channel whose number is zero is still read."""
    net = Sketch("Toy", (2, 3, 3))
    stem = net.conv("stem", net.x, 4, kernel_size=1) if images else sequence(net, "stem")
    branch = net.conv("branch", stem, 4, kernel_size=1) if images else net.linear("branch", stem, 4)
    x = net.call("+", stem, net.call("*", branch, net.declare("gamma", (4, 1, 1) if images else (4,))))
    head = net.classifier("fc", x, 2) if images else net.linear("fc", net.call("torch.mean", x, dim=1), 2)
    graph, state = made(net, head)
    assert find_spaces(graph).dims == {"gamma": 0}
    ignore(state, "branch", 1, 3)
    ignore(state, "fc", 1)
    state["gamma"][2] = 0
    cut = cut_of(graph, state)
    assert width(cut, "stem", "branch") == [3, 3]
    assert cut.state["gamma"].flatten().tolist() == state["gamma"].flatten()[[0, 2, 3]].tolist()


def test_class_token_and_positions() -> None:
    net = Sketch("Toy", (2, 3, 1))
    x = sequence(net, "embed")
    token = net.call("torch.broadcast_to", net.declare("token", (1, 1, 4)), size=(BatchSize(x), -1, -1))
    x = net.call("+", net.cat(token, x), net.declare("positions", (1, 4, 4)))
    graph, state = made(net, net.linear("fc", net.call("torch.mean", x, dim=1), 2), net.linear("dense", x, 3))
    assert find_spaces(graph).dims == {"token": 2, "positions": 2}
    ignore(state, "fc", 0, 3)
    ignore(state, "dense", 0, 2)
    cut = cut_of(graph, state)
    assert torch.equal(cut.state["token"], state["token"][:, :, 1:])
    assert torch.equal(cut.state["positions"], state["positions"][:, :, 1:])
    assert width(cut, "embed") == [3]


def test_hidden_features_of_a_transformer_and_its_stream() -> None:
    """Feature 1 of the stream is silent everywhere; of the hidden ones 0 is unread and 5 is a constant gelu(2)."""
    net = Sketch("Toy", (2, 3, 1))
    x = sequence(net, "embed")
    hidden = net.call("F.gelu", net.linear("fc1", net.layer_norm("norm", x), 8))
    x = net.call("+", x, net.stochastic_depth(net.linear("fc2", hidden, 4), 0.5))
    graph, state = made(net, net.linear("head", net.call("torch.mean", x, dim=1), 2))
    for name in ("embed", "fc2"):
        silence(state, name, 1)
    for name in ("fc1", "head"):
        ignore(state, name, 1)
    ignore(state, "fc2", 0)
    state["fc1.weight"][5], state["fc1.bias"][5] = 0, 2.0
    cut = cut_of(graph, state)
    assert width(cut, "embed", "fc1", "fc2") == [3, 6, 3]
    assert steps(cut, "F.pad") == [{"pad": (0, 1)}]
    constant = float(torch.nn.functional.gelu(torch.tensor(2.0, dtype=torch.float64)))
    expected = (state["fc2.bias"] + constant * state["fc2.weight"][:, 5])[[0, 2, 3]]
    assert torch.allclose(cut.state["fc2.bias"], expected, rtol=1e-12)


def test_positions_that_a_network_selects_and_adds_to() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("conv1", net.x, 5, kernel_size=1)
    part = net.conv("part", net.call("torch.index_select", x, dim=1, index=net.index("reads", 4, 1, 2)), 2, kernel_size=1)
    x = net.call("torch.index_add", x, dim=1, index=net.index("writes", 3, 0), source=part)
    graph, state = made(net, net.classifier("fc", x, 2))
    assert ids(graph, "part", "in") == [3, 0, 1]  # 4 1 2 of conv1
    ignore(state, "part", 1)
    ignore(state, "fc", 1, 3)
    cut = cut_of(graph, state)
    assert width(cut, "conv1", "part") == [3, 1]  # 0 2 4 are left, and of part what goes to 0
    assert {tensor.name: tensor.values for tensor in cut.graph.declared} == {"reads": (2, 1), "writes": (0,)}


def test_shared_layers() -> None:
    """Both inputs of a shared layer lose the same channels, and only what neither call reads."""
    net = Sketch("Toy", (2, 3, 3))
    a, b = net.conv("a", net.x, 4, kernel_size=1), net.conv("b", net.x, 4, kernel_size=1)
    bn = net.norm("bn", a), net.layer("bn", "BatchNorm2d", b)
    x = net.conv("shared", bn[0], 3, kernel_size=1)
    graph, state = made(net, net.classifier("fc", net.call("+", x, net.layer("shared", "Conv2d", bn[1])), 2))
    spaces = find_spaces(graph)
    assert spaces.ids["a", "out"].tolist() == spaces.ids["b", "out"].tolist()
    silence(state, "a", 0)
    state["bn.running_mean"][0] = 0  # a constant in one call
    ignore(state, "shared", 2)
    assert width(cut_of(graph, state), "a", "b") == [3, 3]


def test_several_outputs_and_an_auxiliary_head() -> None:
    """Features that are returned stay; a channel goes when neither the next layer nor the head of train mode reads it."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    auxiliary = net.classifier("aux", x, 2)
    features = net.conv("conv2", x, 3, kernel_size=1)
    graph, state = made(net, net.classifier("fc", features, 2), features, auxiliary=(auxiliary,))
    assert frozen(graph, "conv2") == "the network's output"
    ignore(state, "conv2", 0, 1)
    ignore(state, "aux", 1, 2)
    ignore(state, "fc", 0)
    assert width(cut_of(graph, state), "conv1", "conv2") == [3, 3]


@pytest.mark.parametrize("granularity", range(2, 9))
def test_granularity(granularity: int) -> None:
    """Of 9 and 7 channels 3 and 2 are alive; a concatenation, a slice and a norm of groups of 2 follow."""
    net = Sketch("Toy", (2, 3, 3))
    a, b = net.conv("a", net.x, 9, kernel_size=1), net.conv("b", net.x, 7, kernel_size=1)
    x = net.layer("norm", "GroupNorm", net.cat(a, b), num_groups=16, num_channels=16)
    graph, state = made(net, net.classifier("fc", net.slice(x, 1, 1), 2))
    ignore(state, "fc", *(position - 1 for position in (1, 3, 5, 7, 8, 9, 11, 12, 13, 15)))
    cut = cut_of(graph, state, granularity)
    assert width(cut, "a", "b") == [min(9, -(-3 // granularity) * granularity), min(7, -(-2 // granularity) * granularity)]
