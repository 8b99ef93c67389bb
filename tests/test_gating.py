"""Gates on residual streams: the same function and the same next step, by hand and for networks with random damage."""

import random
from dataclasses import replace

import pytest
import torch
from graphs import Sketch, layer_graphs, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    DAMAGES,
    MAIN_OPTIMIZERS,
    State,
    assert_same_function,
    assert_same_step,
    images_for,
    network,
    new_state,
    settle_,
    well_conditioned,
    zoo_graph,
)

from prunetrain.channels.slicing import Cut, gate, propose_cut
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render

THRESHOLD = 1e-4


def gated_cut(graph: LayerGraph, state: State, granularity: int = 1) -> Cut:
    proposal = propose_cut(graph, state, threshold=THRESHOLD, criterion="either")
    return gate(proposal.apply(proposal.plan(granularity)), threshold=THRESHOLD, granularity=granularity)


def stream() -> tuple[LayerGraph, State]:
    """A stem of 4 channels, and one block: bn1(conv1), relu, bn2(conv2), added to the stem."""
    net = Sketch("Toy", (2, 4, 4))
    stem = net.conv_bn_relu("0", net.x, 4, kernel_size=1)
    x = net.conv_bn_relu("1", stem, 3, kernel_size=3, padding=1)
    x = net.norm("bn2", net.conv("conv2", x, 4, kernel_size=3, padding=1, bias=False))
    graph = net.graph(net.classifier("fc", net.call("F.relu", net.call("+", x, stem)), 2))
    return well_conditioned(graph), new_state(well_conditioned(graph), 0)


def test_a_block_reads_what_it_uses() -> None:
    graph, state = stream()
    state["conv1.weight"][:, [0, 2]] = 0
    cut = gated_cut(graph, state)
    assert (cut.graph.layer("conv1")["in_channels"], cut.graph.layer("conv0")["out_channels"]) == (2, 4)
    assert [(tensor.name, tensor.values) for tensor in cut.graph.declared] == [("conv1_reads", (1, 3))]
    assert torch.equal(cut.state["conv1.weight"], state["conv1.weight"][:, [1, 3]])
    assert "self.bn1(self.conv1(" in render(cut.graph)
    assert_same_function(graph, state, cut)


def test_a_block_writes_what_it_has() -> None:
    graph, state = stream()
    state["conv2.weight"][1] = 0
    state["bn2.bias"][1] = 0
    state["bn2.running_mean"][1] = 0
    cut = gated_cut(graph, state)
    assert (cut.graph.layer("conv2")["out_channels"], cut.graph.layer("bn2")["num_features"]) == (3, 3)
    assert [(tensor.name, tensor.values) for tensor in cut.graph.declared] == [("bn2_writes", (0, 2, 3))]
    assert_same_function(graph, state, cut)


def test_what_a_dead_filter_still_adds_stays_as_a_parameter() -> None:
    graph, state = stream()
    state["conv2.weight"][[0, 3]] = 0
    state["bn2.running_mean"][[0, 3]] = 0
    cut = gated_cut(graph, state)
    assert cut.state["bn2_rest"].flatten().tolist() == state["bn2.bias"][[0, 3]].tolist()
    assert {tensor.name: tensor.values for tensor in cut.graph.declared if tensor.values} == {"bn2_idle": (0, 3), "bn2_writes": (1, 2)}
    assert_same_function(graph, state, cut)
    assert_same_step(graph, state, cut, optimizer="sgd", running_means=True)
    assert "self.bn2_rest = nn.Parameter(" in render(cut.graph)
    frozen = replace(graph, layers=tuple(replace(layer, trainable=False) for layer in graph.layers))
    assert "self.bn2_rest = nn.Buffer(" in render(gated_cut(frozen, state).graph)


def test_modes_that_disagree_forbid_the_gate() -> None:
    graph, state = stream()
    state["conv2.weight"][0] = 0
    state["bn2.running_mean"][0] = 1.0
    assert gated_cut(graph, state).graph == graph


@pytest.mark.parametrize("damaged", ["conv1", "conv2"])
def test_what_has_a_row_an_image_and_what_has_none_are_added_whole(damaged: str) -> None:
    """torch.index_add does not repeat one row for all images, as + does."""
    net = Sketch("Toy", (3, 6, 6))
    positions = net.call("F.interpolate", net.declare("positions", (1, 2, 3, 3)), size=(6, 6), mode="bilinear")
    x = net.call("+", net.conv("conv1", net.x, 4, kernel_size=3, padding=1), net.conv("conv2", positions, 4, kernel_size=1))
    graph = net.graph(net.classifier("fc", net.call("F.relu", net.conv("conv3", x, 4, kernel_size=3)), 3))
    state = new_state(graph, 0)
    state[f"{damaged}.weight"][:2] = 0
    cut = gated_cut(graph, state)
    assert cut.graph == graph
    assert_same_function(graph, state, cut)


def test_gates_keep_to_the_granularity() -> None:
    graph, state = stream()
    state["conv1.weight"][:, :3] = 0
    cut = gated_cut(graph, state, granularity=2)
    assert cut.graph.layer("conv1")["in_channels"] == 2
    assert_same_function(graph, state, cut)


def test_a_second_gate_takes_the_place_of_the_first() -> None:
    graph, state = stream()
    state["conv1.weight"][:, 0] = 0
    state["conv2.weight"][1], state["bn2.running_mean"][1] = 0, 0
    first = gated_cut(graph, state)
    again = {name: tensor.clone() for name, tensor in first.state.items()}
    again["conv1.weight"][:, 0] = 0
    again["conv2.weight"][1], again["bn2.running_mean"][1] = 0, 0
    second = gated_cut(first.graph, again)
    indices = {tensor.name: tensor.values for tensor in second.graph.declared if tensor.values}
    assert indices["conv1_reads"] == (2, 3)
    assert sorted(indices["bn2_writes"]) == [0, 3]
    assert sum("index_select" in step.target for step in second.graph.steps) == 1
    assert_same_function(first.graph, again, second)
    assert_same_step(first.graph, again, second, optimizer="sgd", running_means=True)


def test_a_stream_channel_that_no_one_uses_goes_from_a_gated_network() -> None:
    graph, state = stream()
    state["conv1.weight"][:, [0, 2]] = 0
    first = gated_cut(graph, state)
    again = {name: tensor.clone() for name, tensor in first.state.items()}
    again["fc.weight"][:, 2] = 0
    second = gated_cut(first.graph, again)
    assert second.graph.layer("conv0")["out_channels"] == 3
    assert [tensor.values for tensor in second.graph.declared] == [(1, 2)]
    assert_same_function(first.graph, again, second)


@pytest.mark.parametrize("idle", [[0], [0, 3]])
def test_of_the_channels_that_a_gate_only_adds_constants_to_one_stays(idle: list[int]) -> None:
    """Though none of them is read by anything: a network file has no empty tensors."""
    graph, state = stream()
    state["conv2.weight"][idle] = 0
    state["bn2.running_mean"][idle] = 0
    first = gated_cut(graph, state)
    again = {name: tensor.clone() for name, tensor in first.state.items()}
    again["conv1.weight"][:, idle] = 0
    again["fc.weight"][:, idle] = 0
    second = gated_cut(first.graph, again)
    assert second.graph.layer("conv0")["out_channels"] == 4 - len(idle) + 1
    assert len(second.state["bn2_rest"]) == 1
    assert_same_function(first.graph, again, second)
    assert_same_step(first.graph, again, second, optimizer="sgd", running_means=True)


def test_gates_run_under_autocast() -> None:
    graph, state = stream()
    state["conv2.weight"][[0, 3]] = 0
    state["bn2.running_mean"][[0, 3]] = 0
    cut = gated_cut(graph, state)
    model = network(cut.graph, cut.state).float().train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images_for(graph).float())
    assert outputs.isfinite().all()


def test_nothing_dead_changes_nothing() -> None:
    graph, state = stream()
    assert gated_cut(graph, state).graph == graph
    wide = well_conditioned(residual())
    assert gated_cut(wide, new_state(wide, 1)).graph == wide


@pytest.mark.parametrize("name", ["resnet20", "resnet50-cifar", "mobilenet-v1-cifar"])
@pytest.mark.parametrize("damage", ["filters and slices", "filters"])
def test_zoo(name: str, damage: str) -> None:
    graph = zoo_graph(name, width=6)
    state = new_state(graph, 0)
    DAMAGES[damage](graph, state, random.Random(0))
    settle_(graph, state, images_for(graph))
    plain = propose_cut(graph, state, threshold=THRESHOLD, criterion="either")
    cut = gated_cut(graph, state)
    assert_same_function(graph, state, cut)
    assert_same_step(graph, state, cut, optimizer="sgd", running_means=True)
    assert costs(cut.graph).macs <= costs(plain.graph_for(plain.plan())).macs
    if name.startswith("resnet"):
        assert costs(cut.graph).macs < costs(plain.graph_for(plain.plan())).macs


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(
    graph=layer_graphs().map(well_conditioned).filter(lambda graph: graph.layers),
    seed=st.integers(0, 10**6),
    damage=st.sampled_from(sorted(DAMAGES)),
    optimizer=st.sampled_from(MAIN_OPTIMIZERS),
    granularity=st.sampled_from([1, 1, 2]),
)
@settings(max_examples=150, derandomize=True)
def test_random_networks(*, graph: LayerGraph, seed: int, damage: str, optimizer: str, granularity: int) -> None:
    state = new_state(graph, seed)
    DAMAGES[damage](graph, state, random.Random(seed))
    settle_(graph, state, images_for(graph))
    cut = gated_cut(graph, state, granularity)
    assert parse(render(cut.graph)) == cut.graph
    assert_same_function(graph, state, cut)
    if cut.state:
        assert_same_step(graph, state, cut, optimizer=optimizer, running_means=True)
