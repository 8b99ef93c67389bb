"""What of a network can be cut: toys whose MACs fit on a napkin."""

import pytest
from graphs import attention
from sketch import Sketch

from prunetrain.channels.coverage import Coverage, StuckOutputs, cuttable_macs
from prunetrain.channels.spaces import Role, find_spaces
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph

INPUT, OUTPUT = "the network's input", "the network's output"


def coverage(graph: LayerGraph) -> Coverage:
    return cuttable_macs(graph, find_spaces(graph))


def test_a_chain_is_cuttable_from_end_to_end() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.call("F.relu", net.conv("conv1", net.x, 4, kernel_size=1))
    found = coverage(net.graph(net.linear("fc", net.call("torch.flatten", x, start_dim=1), 5)))
    assert found == Coverage(3 * 4 * 16 + 64 * 5, 3 * 4 * 16 + 64 * 5, ())
    assert found.share == 1


def test_a_layer_between_input_and_output_must_stay() -> None:
    net = Sketch("Net", (3, 4, 4))
    found = coverage(net.graph(net.conv("conv1", net.x, 4, kernel_size=1)))
    assert found == Coverage(3 * 4 * 16, 0, (StuckOutputs("conv1", 4, 4, OUTPUT),))


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
    assert found == Coverage(2 * 9 * 16 + 3 * 2, 0, (StuckOutputs("conv1", 3, 3, INPUT),))


def test_computed_weights_count_as_macs_that_stay() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    weight = net.call("*", net.declare("weight", (5, 4, 1, 1)), 0.5)
    graph = net.graph(net.classifier("fc", net.call("F.conv2d", x, weight=weight), 2))
    found = coverage(graph)
    assert found.macs == costs(graph).macs == 3 * 4 * 16 + 4 * 5 * 16 + 5 * 2
    assert found.cuttable_macs == 0  # what a computed weight meets is frozen on both sides


def test_no_macs_no_share() -> None:
    net = Sketch("Net", (3, 4, 4))
    found = coverage(net.graph(net.norm("bn", net.x)))
    assert (found, found.share) == (Coverage(0, 0, ()), 0)


def test_agrees_with_what_the_spaces_say() -> None:
    graph = attention()
    spaces = find_spaces(graph)
    frozen = spaces.frozen_channels()
    stuck = {name for name, axis in spaces.axes(Role.PRODUCER) if frozen[spaces.ids[name, axis]].any()}
    convs = {layer.name for layer in graph.layers if layer.is_convolution}
    found = cuttable_macs(graph, spaces)
    assert {entry.layer for entry in found.stuck} == stuck & convs
    assert 0 < found.cuttable_macs <= found.macs
