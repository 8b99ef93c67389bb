"""What of a network can be cut: toys whose MACs fit on a napkin."""

import pytest
from graphs import attention
from sketch import Sketch

from prunetrain.channels.coverage import Coverage, StuckOutputs, StuckSpace, measure_coverage
from prunetrain.channels.spaces import Role, find_spaces
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph

INPUT, OUTPUT = "the network's input", "the network's output"


def coverage(graph: LayerGraph) -> Coverage:
    return measure_coverage(graph, find_spaces(graph))


def test_a_chain_is_cuttable_from_end_to_end() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.call("F.relu", net.conv("conv1", net.x, 4, kernel_size=1))
    found = coverage(net.graph(net.linear("fc", net.call("torch.flatten", x, start_dim=1), 5)))
    assert (found.macs, found.cuttable_macs, found.stuck) == (3 * 4 * 16 + 64 * 5, 3 * 4 * 16 + 64 * 5, ())
    assert found.spaces == (StuckSpace("input", 3, INPUT), StuckSpace("fc", 5, OUTPUT))
    assert found.least_macs == 3 * 1 * 16 + 16 * 5  # one of conv1's channels
    assert (found.share, found.least_share) == (1, 0.25)


def test_a_layer_between_input_and_output_must_stay() -> None:
    net = Sketch("Net", (3, 4, 4))
    found = coverage(net.graph(net.conv("conv1", net.x, 4, kernel_size=1)))
    assert (found.macs, found.cuttable_macs, found.least_macs) == (3 * 4 * 16, 0, 3 * 4 * 16)
    assert found.stuck == (StuckOutputs("conv1", 4, 4, OUTPUT),)


def test_frozen_inputs_count_by_their_share() -> None:
    net = Sketch("Net", (3, 4, 4))
    both = net.cat(net.x, net.conv("conv1", net.x, 5, kernel_size=1))
    found = coverage(net.graph(net.conv("conv2", both, 2, kernel_size=3, padding=1)))
    assert found.macs == 3 * 5 * 16 + 8 * 2 * 9 * 16
    assert found.cuttable_macs == pytest.approx(3 * 5 * 16 + 5 * 2 * 9 * 16)  # the image's three channels stay, and so do both outputs
    assert [stuck.layer for stuck in found.stuck] == ["conv2"]


def test_depthwise_convs_go_with_the_channels_they_work_on() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.cat(net.x, net.conv("conv1", net.x, 5, kernel_size=1))
    x = net.conv("depthwise", x, 8, kernel_size=3, padding=1, groups=8)
    found = coverage(net.graph(net.classifier("fc", x, 2)))
    assert found.macs == 3 * 5 * 16 + 8 * 9 * 16 + 8 * 2
    assert found.cuttable_macs == pytest.approx(3 * 5 * 16 + 5 * 9 * 16 + 5 * 2)
    assert found.stuck == (StuckOutputs("depthwise", 3, 8, INPUT),)


def test_a_layer_that_runs_twice_costs_twice_and_is_listed_once() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.layer("conv1", "Conv2d", net.x, in_channels=3, out_channels=3, kernel_size=1)
    found = coverage(net.graph(net.classifier("fc", net.layer("conv1", "Conv2d", x), 2)))
    assert (found.macs, found.cuttable_macs, found.least_macs) == (2 * 9 * 16 + 3 * 2, 0, 2 * 9 * 16 + 3 * 2)
    assert found.stuck == (StuckOutputs("conv1", 3, 3, INPUT),)


def test_computed_weights_count_like_those_of_layers() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    weight = net.call("*", net.declare("weight", (5, 4, 1, 1)), 0.5)
    found = coverage(net.graph(net.classifier("fc", net.call("F.conv2d", x, weight=weight), 2)))
    assert found.macs == found.cuttable_macs == 3 * 4 * 16 + 4 * 5 * 16 + 5 * 2
    assert found.least_macs == 3 * 16 + 16 + 2


def test_weights_that_depend_on_the_image_count_as_macs_that_stay() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    scale = net.call("torch.mean", net.x, dim=(0, 1, 2, 3))
    weight = net.call("*", net.declare("weight", (5, 4, 1, 1)), scale)
    graph = net.graph(net.classifier("fc", net.call("F.conv2d", x, weight=weight), 2))
    found = coverage(graph)
    assert found.macs == costs(graph).macs == 3 * 4 * 16 + 4 * 5 * 16 + 5 * 2
    assert found.cuttable_macs == 0


def test_functions_of_declared_tensors_without_channels() -> None:
    """A table of positions that a linear map reads: its weight is transposed, so nothing of either can go."""
    net = Sketch("Net", (3, 4, 4))
    bias = net.call(
        "F.linear", net.declare("table", (5, 4)), weight=net.call("torch.transpose", net.declare("weight", (4, 6)), dim0=0, dim1=1)
    )
    x = net.conv("conv1", net.x, 6, kernel_size=1)
    x = net.call("*", x, net.call("torch.reshape", net.call("torch.mean", bias, dim=0), shape=(6, 1, 1)))
    found = coverage(net.graph(net.classifier("fc", x, 2)))
    assert (found.macs, found.cuttable_macs) == (5 * 4 * 6 + 3 * 6 * 16 + 6 * 2, 0)


def test_no_macs_no_share() -> None:
    net = Sketch("Net", (3, 4, 4))
    found = coverage(net.graph(net.norm("bn", net.x)))
    assert (found.macs, found.cuttable_macs, found.least_macs, found.stuck) == (0, 0, 0, ())
    assert (found.share, found.least_share) == (0, 1)


def test_groups_that_overlap_make_one_of_all_channels() -> None:
    """GroupNorm's groups of conv1's six channels and conv2's four are 0 to 4 and 5 to 9, those of conv1's alone 0 to 2 and 3 to 5."""
    net = Sketch("Net", (3, 4, 4))
    first = net.layer("norm1", "GroupNorm", net.conv("conv1", net.x, 6, kernel_size=1), num_groups=2, num_channels=6)
    both = net.layer("norm2", "GroupNorm", net.cat(first, net.conv("conv2", first, 4, kernel_size=1)), num_groups=2, num_channels=10)
    found = coverage(net.graph(net.classifier("fc", net.conv("conv3", both, 5, kernel_size=1), 2)))
    assert found.macs == 16 * (3 * 6 + 6 * 4 + 10 * 5) + 5 * 2
    assert found.cuttable_macs == 16 * 10 * 5 + 5 * 2
    assert found.least_macs == 16 * (3 * 6 + 6 * 4 + 10 * 1) + 1 * 2
    tied = "groups of GroupNorm tie them all together"
    assert found.spaces == (StuckSpace("input", 3, INPUT), StuckSpace("conv1", 10, tied), StuckSpace("fc", 2, OUTPUT))
    assert found.stuck == (StuckOutputs("conv1", 6, 6, tied), StuckOutputs("conv2", 4, 4, tied))


def test_groups_that_fit_go_one_by_one() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.layer("norm", "GroupNorm", net.conv("conv1", net.x, 6, kernel_size=1), num_groups=2, num_channels=6)
    found = coverage(net.graph(net.classifier("fc", x, 2)))
    assert (found.share, found.least_share, found.stuck) == (1, 0.5, ())


def test_the_last_channel_of_a_space_stays() -> None:
    net = Sketch("Net", (3, 4, 4))
    found = coverage(net.graph(net.classifier("fc", net.conv("conv1", net.x, 1, kernel_size=1), 2)))
    assert found.cuttable_macs == 0
    assert found.spaces[1] == StuckSpace("conv1", 1, "one channel of each space stays")


def test_other_layers_tie_as_well() -> None:
    """Two groups of one channel each, which give up the same channels."""
    net = Sketch("Net", (4, 4, 4))
    x = net.conv("conv2", net.conv("conv1", net.x, 8, kernel_size=1), 2, kernel_size=1, groups=2)
    found = coverage(net.graph(net.classifier("fc", x, 2)))
    assert found.spaces[1] == StuckSpace("conv2", 2, "the layers tie them all together")


def test_agrees_with_what_the_spaces_say() -> None:
    graph = attention()
    spaces = find_spaces(graph)
    frozen = spaces.frozen_channels()
    stuck = {name for name, axis in spaces.axes(Role.PRODUCER) if frozen[spaces.ids[name, axis]].any()}
    convs = {layer.name for layer in graph.layers if layer.is_convolution}
    found = measure_coverage(graph, spaces)
    assert {entry.layer for entry in found.stuck} == stuck & convs
    assert 0 < found.cuttable_macs <= found.macs
