"""Cutting live channels: the smaller network is the larger one with zeros in all that belongs to them."""

import numpy as np
import pytest
import torch
from graphs import Sketch, depthwise, grouped, layer_graphs, layer_norm, residual, shuffle
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import State, assert_same_function, assert_same_step, images_for, network, new_state, outputs_of, well_conditioned, zoo_graph

from prunetrain.channels.masking import mask_channels
from prunetrain.channels.removal import Removal, remove_channels
from prunetrain.channels.selection import Candidates, KeepPlan, make_plan
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render


def plan_at_random(graph: LayerGraph, seed: int, share: float = 0.4) -> KeepPlan:
    spaces = find_spaces(graph)
    generator = np.random.default_rng(seed)
    return make_plan(
        Candidates.from_removable(spaces, generator.random(spaces.num_channels) < share, generator.random(spaces.num_channels))
    )


def removal_of(graph: LayerGraph, state: State, plan: KeepPlan) -> Removal:
    """The removal, held to the contract: equal to the masked network, in what it computes and in its next step."""
    before = {name: tensor.clone() for name, tensor in state.items()}
    removal = remove_channels(graph, state, plan)
    assert all(torch.equal(before[name], state[name]) for name in state)
    assert parse(render(removal.cut.graph)) == removal.cut.graph
    masked = mask_channels(graph, state, plan.spaces, ~removal.plan.keep)
    assert_same_function(graph, masked, removal.cut)
    assert_same_step(graph, masked, removal.cut, optimizer="sgd", running_means=False)
    return removal


def test_by_hand_a_filter_goes_with_its_batch_norm_and_its_readers() -> None:
    net = Sketch("Toy", (1, 4, 4))
    x = net.conv_bn_relu("1", net.x, 3, kernel_size=3, padding=1)
    graph = well_conditioned(net.graph(net.classifier("fc", net.conv_bn_relu("2", x, 2, kernel_size=3, padding=1), 2)))
    state = new_state(graph, 0)
    plan = plan_at_random(graph, 0, share=0)
    plan.keep[plan.spaces.ids["conv1", "out"][1]] = False
    cut = removal_of(graph, state, plan).cut
    assert torch.equal(cut.state["conv1.weight"], state["conv1.weight"][[0, 2]])
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(cut.state[f"bn1.{tensor}"], state[f"bn1.{tensor}"][[0, 2]])
    assert torch.equal(cut.state["conv2.weight"], state["conv2.weight"][:, [0, 2]])
    assert torch.equal(cut.state["bn2.running_mean"], state["bn2.running_mean"])  # zero was absorbed, so nothing moved

    masked = dict(state)  # what zeroing the filter and BatchNorm's numbers for it comes to, by hand
    for name in ("conv1.weight", "bn1.weight", "bn1.bias"):
        masked[name] = state[name].clone()
        masked[name][1] = 0
    assert_same_function(graph, masked, cut)


def test_a_filter_without_its_batch_norm_is_not_the_same() -> None:
    """A bias of BatchNorm that lives on is what makes masked filters and cut channels differ; the cut must not pretend otherwise."""
    graph = well_conditioned(residual())
    state = new_state(graph, 0)
    plan = plan_at_random(graph, 0, share=0)
    plan.keep[plan.spaces.ids["layer1_0_conv1", "out"][0]] = False
    state["layer1_0_bn1.bias"][0] = 2.0
    cut = removal_of(graph, state, plan).cut
    only_filter = {name: tensor.clone() for name, tensor in state.items()}
    only_filter["layer1_0_conv1.weight"][0] = 0
    with torch.no_grad():
        images = images_for(graph)
        difference = outputs_of(network(cut.graph, cut.state).eval(), images) - outputs_of(network(graph, only_filter).eval(), images)
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("make", [residual, depthwise, grouped, layer_norm, shuffle])
def test_networks_by_hand(make: object) -> None:
    graph = well_conditioned(make())  # type: ignore[operator]
    for seed in (0, 1):
        plan = plan_at_random(graph, seed)
        removal = removal_of(graph, new_state(graph, seed), plan)
        assert (removal.plan.keep >= plan.keep).all()
        assert (removal.cut.graph == graph) == bool(removal.plan.keep.all())


@pytest.mark.parametrize("name", ["resnet20", "resnet50-cifar", "vgg8", "mobilenet-v1-cifar", "lenet5", "alexnet", "mlp"])
def test_networks_of_the_zoo(name: str) -> None:
    graph = zoo_graph(name, width=5)
    plan = plan_at_random(graph, 0)
    removal = removal_of(graph, new_state(graph, 0), plan)
    assert (removal.plan.keep == plan.keep).all()
    for axis, ids in removal.plan.spaces.ids.items():
        layer = removal.cut.graph.layer(axis[0])
        assert layer[layer.signature.sizes[axis[1]]] == plan.keep[ids].sum() or layer.conv_groups > 1  # depthwise


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(graph=layer_graphs().map(well_conditioned).filter(lambda graph: graph.layers), seed=st.integers(0, 10**6))
@settings(max_examples=60, derandomize=True)
def test_random_networks(graph: LayerGraph, seed: int) -> None:
    removal_of(graph, new_state(graph, seed), plan_at_random(graph, seed))


def test_what_a_layer_norm_reads_behind_a_sigmoid_stays_as_it_was() -> None:
    """sigmoid(0) is 0.5, which LayerNorm would average over; a channel that cannot go exactly is not masked either."""
    net = Sketch("Toy", (6,))
    x = net.call("torch.sigmoid", net.linear("fc1", net.x, 4))
    graph = well_conditioned(net.graph(net.linear("fc2", net.layer_norm("norm", x), 2)))
    state = new_state(graph, 0)
    plan = plan_at_random(graph, 0, share=0)
    plan.keep[plan.spaces.ids["fc1", "out"][2]] = False
    removal = removal_of(graph, state, plan)
    assert removal.plan.keep.all()
    assert removal.cut.graph == graph
    assert all(torch.equal(removal.cut.state[name], state[name]) for name in state)
