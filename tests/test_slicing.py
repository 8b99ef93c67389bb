"""Cutting: the smaller network computes what the larger one does, and goes on training as it would have.

The contract of DESIGN, section 7, for every network of the zoo and for random networks, under random damage.
"""

import random
from collections.abc import Collection
from copy import deepcopy
from typing import Any

import pytest
import torch
from graphs import Sketch, concat, depthwise, layer_graphs, padded, residual, shuffle
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    DAMAGES,
    MAIN_OPTIMIZERS,
    OPTIMIZERS,
    State,
    after_cut,
    assert_same_function,
    assert_same_in_train_mode,
    assert_same_step,
    images_for,
    in_training,
    network,
    new_state,
    settle_,
    train_,
    well_conditioned,
    zoo_graph,
)
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from prunetrain import zoo
from prunetrain.channels.slicing import Cut, propose_cut, slice_optimizer_state
from prunetrain.channels.sources import Source
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render

THRESHOLD = 1e-4


def cut_of(graph: LayerGraph, state: State, criterion: str = "either", granularity: int = 1, always_eval: Collection[str] = ()) -> Cut:
    proposal = propose_cut(graph, state, threshold=THRESHOLD, criterion=criterion, always_eval=always_eval)
    return proposal.apply(proposal.plan(granularity))


def chain() -> tuple[LayerGraph, State]:
    """conv1 (2 -> 4), bn1, ReLU, conv2 (4 -> 3), flatten to 3x2x2, fc (12 -> 2)."""
    net = Sketch("Toy", (2, 2, 2))
    x = net.conv("conv2", net.conv_bn_relu("1", net.x, 4, kernel_size=1), 3, kernel_size=1)
    graph = net.graph(net.linear("fc", net.call("torch.flatten", x, start_dim=1), 2))
    return graph, new_state(graph, 0)


def unpadded() -> LayerGraph:
    """A residual block, a concatenation, BatchNorm on BatchNorm and a bias, and no padding: constants get everywhere."""
    net = Sketch("Unpadded", (3, 6, 6))
    x = net.conv_bn_relu("1", net.x, 6, kernel_size=3)
    x = net.call("+", x, net.norm("bn3", net.conv("conv3", net.conv_bn_relu("2", x, 6, kernel_size=1), 6, kernel_size=1)))
    x = net.cat(net.conv_bn_relu("4", x, 4, kernel_size=3), net.conv_bn_relu("5", x, 4, kernel_size=3))
    x = net.conv("conv6", net.call("F.relu", net.norm("bn6", x)), 5, kernel_size=1)
    return net.graph(net.classifier("fc", net.call("F.relu", x), 3))


# By hand.


def test_shapes_and_weights_of_a_cut_chain() -> None:
    graph, state = chain()
    state["conv1.weight"][[1, 3]] = 0
    state["conv2.weight"][:, [1, 3]] = 0
    state["conv2.weight"][1] = 0
    state["fc.weight"][:, 4:8] = 0
    cut = cut_of(graph, state, "union")
    layers = {layer.name: dict(layer.arguments) for layer in cut.graph.layers}
    assert (layers["conv1"]["in_channels"], layers["conv1"]["out_channels"], layers["bn1"]["num_features"]) == (2, 2, 2)
    assert (layers["conv2"]["in_channels"], layers["conv2"]["out_channels"]) == (2, 2)
    assert (layers["fc"]["in_features"], layers["fc"]["out_features"]) == (8, 2)
    expected = {
        "conv1.weight": state["conv1.weight"][[0, 2]],
        **{f"bn1.{name}": state[f"bn1.{name}"][[0, 2]] for name in ("weight", "bias", "running_mean", "running_var")},
        "bn1.num_batches_tracked": state["bn1.num_batches_tracked"],
        "conv2.weight": state["conv2.weight"][[0, 2]][:, [0, 2]],
        "conv2.bias": state["conv2.bias"][[0, 2]],
        "fc.weight": state["fc.weight"][:, [0, 1, 2, 3, 8, 9, 10, 11]],
        "fc.bias": state["fc.bias"],
    }
    assert list(cut.state) == list(state)
    for name, tensor in cut.state.items():
        assert torch.equal(tensor, expected[name])
        assert torch.equal(tensor, cut.sources[name].gather(state[cut.sources[name].name]))


def test_depthwise_conv_is_cut_with_its_groups() -> None:
    net = Sketch("Toy", (1, 4, 4))
    x = net.conv("depthwise", net.conv("conv1", net.x, 3, kernel_size=1), 6, kernel_size=3, padding=1, groups=3, bias=False)
    graph = net.graph(net.conv("conv2", net.norm("bn", x), 2, kernel_size=1))
    state = new_state(graph, 0)
    state["conv2.weight"][:, [0, 1, 2]] = 0  # of the outputs of channel 1 the second is read
    cut = cut_of(graph, state)
    layer = cut.graph.layer("depthwise")
    assert (layer["in_channels"], layer["out_channels"], layer["groups"]) == (2, 4, 2)
    assert torch.equal(cut.state["depthwise.weight"], state["depthwise.weight"][2:])
    assert_same_function(graph, state, cut)


def test_depthwise_conv_of_which_one_channel_stays_is_a_plain_one() -> None:
    net = Sketch("Toy", (1, 4, 4))
    x = net.conv("depthwise", net.conv("conv1", net.x, 3, kernel_size=1), 6, kernel_size=3, padding=1, groups=3)
    graph = net.graph(net.conv("conv2", x, 2, kernel_size=1))
    state = new_state(graph, 0)
    state["conv2.weight"][:, :4] = 0
    cut = cut_of(graph, state)
    assert (cut.graph.layer("depthwise")["groups"], cut.graph.layer("depthwise")["out_channels"]) == (1, 2)
    assert_same_function(graph, state, cut)
    assert_same_function(cut.graph, cut.state, cut_of(cut.graph, cut.state))


@pytest.mark.parametrize(
    ("graph", "dead", "smaller"),
    [
        (padded(), [0], padded(4, 7, (1, 2))),
        (padded(), [0, 1, 6, 7], padded(4, 4, (0, 0))),
        (padded(), [1, 3, 4, 5], padded(1, 4, (1, 2))),
        (padded(1, 4, (1, 2)), [0, 3], padded(1, 2, (0, 1))),
    ],
)
def test_channels_that_a_shortcut_is_padded_with_go(graph: LayerGraph, dead: list[int], smaller: LayerGraph) -> None:
    state = new_state(graph, 0)
    before = next(step for step in graph.steps if step.target == "F.pad")["pad"][-2]
    state["fc.weight"][:, dead] = 0
    state["conv2.weight"][:, [c - before for c in dead if 0 <= c - before < graph.layer("conv1")["out_channels"]]] = 0
    cut = cut_of(graph, state)
    assert cut.graph == smaller
    assert_same_function(graph, state, cut)
    assert_same_step(graph, state, cut, optimizer="sgd", running_means=False)


def test_running_mean_and_bias_take_over_what_went() -> None:
    net = Sketch("Toy", (1, 3, 3))
    x = net.conv("conv1", net.x, 3, kernel_size=1)
    x = net.norm("bn2", net.conv("conv2", x, 2, kernel_size=2))
    x = net.call("torch.flatten", net.call("F.adaptive_avg_pool2d", net.conv("conv3", x, 3, kernel_size=1), output_size=1), start_dim=1)
    graph = net.graph(net.linear("fc", x, 1))
    state = new_state(graph, 0)
    for name, dead, constant in (("conv1", 1, 2.0), ("conv3", 0, -3.0)):
        state[f"{name}.weight"][dead], state[f"{name}.bias"][dead] = 0, constant
    cut = cut_of(graph, state)
    assert [cut.state[name].shape[0] for name in ("conv1.weight", "conv3.weight")] == [2, 2]
    shift = 2 * state["conv2.weight"][:, 1].sum((1, 2))
    assert torch.allclose(cut.state["bn2.running_mean"], state["bn2.running_mean"] - shift, rtol=1e-12)
    assert torch.equal(cut.state["conv2.bias"], state["conv2.bias"])
    assert torch.allclose(cut.state["fc.bias"], state["fc.bias"] - 3 * state["fc.weight"][:, 0], rtol=1e-12)
    assert_same_function(graph, state, cut)


def test_constants_of_channels_that_stay_are_not_taken_over() -> None:
    graph, state = chain()
    state["conv2.weight"][:2] = 0
    cut = cut_of(graph, state, granularity=2)
    kept = int(torch.linalg.vector_norm(state["fc.weight"][:, :8].unflatten(1, (2, 4)), dim=(0, 2)).argmax())
    assert torch.equal(cut.state["conv2.bias"], state["conv2.bias"][[kept, 2]])
    gone = 1 - kept
    shift = state["conv2.bias"][gone] * state["fc.weight"][:, 4 * gone : 4 * gone + 4].sum(1)
    assert torch.allclose(cut.state["fc.bias"], state["fc.bias"] + shift, rtol=1e-12)


def test_modes_that_disagree_forbid_the_cut() -> None:
    """conv2 has no BatchNorm behind it, and bn1 says one thing in train mode and another in eval mode."""
    graph, state = chain()
    state["conv1.weight"][0] = 0
    state["bn1.bias"][0], state["bn1.running_mean"][0] = 1.0, 0.5
    assert cut_of(graph, state).graph == graph
    state["bn1.running_mean"][0] = 0.0
    assert cut_of(graph, state).graph.layer("conv1")["out_channels"] == 3


@pytest.mark.parametrize("granularity", [1, 2])
def test_constants_stay_with_the_constants_they_are_computed_from(granularity: int) -> None:
    """All of conv1 is dead, so all of fc1 is constant. As long as a channel of conv1 stays, its bias learns through all of fc1."""
    net = Sketch("Toy", (1, 3, 3))
    x = net.call("torch.flatten", net.conv("conv1", net.x, 3, kernel_size=2), start_dim=1)
    graph = net.graph(net.linear("fc2", net.call("torch.tanh", net.linear("fc1", x, 4)), 2))
    state = new_state(graph, 0)
    state["conv1.weight"].zero_()
    cut = cut_of(graph, state, granularity=granularity)
    assert [cut.graph.layer("conv1")["out_channels"], cut.graph.layer("fc1")["out_features"]] == [granularity, 4]
    assert_same_function(graph, state, cut)
    assert_same_step(graph, state, cut, optimizer="sgd", running_means=True)


def test_dead_weights_need_not_be_zero() -> None:
    graph, state = chain()
    state["conv1.weight"][1] = -0.9 * THRESHOLD
    state["conv2.weight"][:, 1] = 0.9 * THRESHOLD
    assert cut_of(graph, state, "union").graph.layer("conv1")["out_channels"] == 3


@pytest.mark.parametrize("granularity", [1, 2, 3])
def test_proposed_graph_is_the_one_that_is_made(granularity: int) -> None:
    graph, state = chain()
    state["conv1.weight"][[0, 1, 3]] = 0
    state["conv2.weight"][:, [0, 1, 3]] = 0
    proposal = propose_cut(graph, state, threshold=THRESHOLD, criterion="either")
    plan = proposal.plan(granularity)
    assert proposal.graph_for(plan) == proposal.apply(plan).graph
    assert proposal.graph_for(plan).layer("conv1")["out_channels"] == granularity


def test_everything_dead_leaves_one_channel_a_space_and_says_so() -> None:
    graph, state = chain()
    dead = {name: torch.zeros_like(tensor) if name.endswith("weight") else tensor for name, tensor in state.items()}
    for criterion in ("union", "either"):
        cut = cut_of(graph, dead, criterion)
        assert cut.rescued_spaces == ("conv1", "conv2")
        assert [cut.graph.layer(name)["out_channels"] for name in ("conv1", "conv2")] == [1, 1]
        assert_same_function(graph, dead, cut)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_of_tensors_stay(dtype: torch.dtype) -> None:
    graph, double = chain()
    double["conv1.weight"][0] = 0
    double["bn1.running_mean"][0] = 0
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in double.items()}
    cut = cut_of(graph, state)
    assert cut.graph != graph
    assert {name: tensor.dtype for name, tensor in cut.state.items()} == {name: tensor.dtype for name, tensor in state.items()}


def test_all_that_stays_is_not_copied_and_the_rest_is() -> None:
    assert Source("w", {0: torch.arange(3)}).gather(kept := torch.ones(3, 2)) is kept
    assert Source("w", {0: torch.tensor([0, 2])}).gather(kept).data_ptr() != kept.data_ptr()
    assert Source("w", {0: torch.tensor([2]), 1: torch.tensor([0, 1])}).gather(torch.arange(9).view(3, 3)).tolist() == [[6, 7]]


# The optimizer.


def damaged_residual() -> tuple[LayerGraph, State]:
    """A network of which the cut takes channels, one branch but for its bias, and inputs of a bias and of running means."""
    graph = well_conditioned(residual())
    state = new_state(graph, 0)
    state["layer1_0_conv2.weight"].zero_()
    state["layer1_0_bn2.running_mean"].zero_()
    state["layer2_0_conv1.weight"][:5] = 0
    state["fc.weight"][:, [1, 2]] = 0
    settle_(graph, state, images_for(graph))
    return graph, state


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_goes_on_as_it_would_have(optimizer: str) -> None:
    graph, state = damaged_residual()
    cut = cut_of(graph, state)
    assert cut.graph.declared
    assert cut.graph.layer("fc")["in_features"] < graph.layer("fc")["in_features"]
    assert_same_step(graph, state, cut, optimizer=optimizer, running_means=True)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_state_is_gathered_and_step_counts_are_carried(optimizer: str) -> None:
    graph, state = damaged_residual()
    cut = cut_of(graph, state)
    model, made = in_training(graph, state, optimizer)
    smaller, going_on = after_cut(cut, model, made, optimizer)
    before = dict(model.named_parameters())
    for name, parameter in smaller.named_parameters():
        source = cut.sources[name]
        old, new = made.state[before[source.name]], going_on.state[parameter]
        assert new.keys() == old.keys()
        for key, entry in old.items():
            if isinstance(entry, Tensor) and entry.dim():
                assert new[key].shape == parameter.shape
                assert torch.equal(new[key], source.gather(entry))
            else:
                assert new[key] == entry


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """Weights of convs, what belongs to one layer only, and the rest: three groups with settings of their own."""
    named = dict(model.named_parameters())
    alone = [p for name, p in named.items() if name.startswith("layer1_0_conv1")]
    weights = [p for name, p in named.items() if p.dim() > 1 and "bias" not in name and not name.startswith("layer1_0_conv1")]
    others = [p for p in named.values() if not any(p is q for q in (*alone, *weights))]
    return [
        {"params": others, "weight_decay": 0.0, "lr": 0.3},
        {"params": alone, "lr": 0.2},
        {"params": weights, "weight_decay": 0.5, "momentum": 0.5},
    ]


def names_by_group(model: nn.Module) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in grouped(model) for parameter in group["params"]]


def test_parameters_stay_in_their_groups() -> None:
    graph, state = damaged_residual()
    cut = cut_of(graph, state)
    model, smaller = network(graph, state), network(cut.graph, cut.state)
    made = SGD(grouped(model), lr=0.1, momentum=0.9)
    train_(model, made, images_for(graph))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    sliced = slice_optimizer_state(made.state_dict(), names_by_group(model), names_by_group(smaller), cut.sources, shapes)
    assert [len(group["params"]) for group in sliced["param_groups"]] == [len(group["params"]) for group in grouped(smaller)]
    assert sliced["param_groups"][1]["params"] == []  # its layer went
    going_on = SGD(grouped(smaller), lr=1.0)
    going_on.load_state_dict(deepcopy(sliced))
    settings_of = [{key: group[key] for key in ("lr", "momentum", "weight_decay")} for group in going_on.param_groups]
    assert settings_of == [
        {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.0},
        {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.0},
        {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.5},
    ]
    before = dict(model.named_parameters())
    for name, parameter in smaller.named_parameters():
        buffer = made.state[before[cut.sources[name].name]]["momentum_buffer"]
        assert torch.equal(going_on.state[parameter]["momentum_buffer"], cut.sources[name].gather(buffer))


def test_names_that_an_optimizer_was_given_follow() -> None:
    graph, state = damaged_residual()
    cut = cut_of(graph, state)
    model, smaller = network(graph, state), network(cut.graph, cut.state)
    names = [name for name, _ in smaller.named_parameters()]
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    made = AdamW(model.named_parameters())
    sliced = slice_optimizer_state(made.state_dict(), list(shapes), names, cut.sources, shapes)
    assert sliced["param_groups"][0]["param_names"] == names
    assert sliced["state"] == {}  # no step was made yet


# The contract.


def test_nothing_is_changed_in_place() -> None:
    graph, state = damaged_residual()
    model, made = in_training(graph, state, "adamw")
    before = deepcopy((model.state_dict(), made.state_dict()))
    cut = cut_of(graph, model.state_dict())
    smaller, going_on = after_cut(cut, model, made, "adamw")
    train_(smaller, going_on, images_for(graph))
    now = (model.state_dict(), made.state_dict())
    for old, new in zip(before[0].values(), now[0].values(), strict=True):
        assert torch.equal(old, new)
    assert before[1]["param_groups"] == now[1]["param_groups"]
    for number, entries in before[1]["state"].items():
        for key, entry in entries.items():
            assert torch.equal(entry, now[1]["state"][number][key])


def damaged(graph: LayerGraph, seed: int, damage: str, *, settled: bool) -> State:
    """Random weights with this damage. Settled: BatchNorms know the mean of a batch; else numbers that train mode would not give."""
    state = new_state(graph, seed)
    DAMAGES[damage](graph, state, random.Random(seed))
    if settled:
        settle_(graph, state, images_for(graph))
    return state


@pytest.mark.parametrize("name", zoo.names())
def test_zoo(name: str) -> None:
    graph = zoo_graph(name, width=6)
    left = {}
    for number, damage in enumerate(DAMAGES):
        settled, optimizer = number % 2 == 0, MAIN_OPTIMIZERS[number // 2 % 2]
        state = damaged(graph, number, damage, settled=settled)
        cuts = [cut_of(graph, state, criterion) for criterion in ("union", "either")]
        assert_same_function(graph, state, *cuts)
        assert_same_step(graph, state, *cuts, optimizer=optimizer, running_means=settled)
        left[damage] = [costs(cut.graph).channels / costs(graph).channels for cut in cuts]
    assert max(left["channels"]) < 0.8
    assert left["slices"][1] < 0.95
    assert left["filters"][1] < 1
    assert all(either <= union for union, either in left.values())


@pytest.mark.parametrize("damage", DAMAGES)
def test_resnet20_in_full_width(damage: str) -> None:
    graph = zoo_graph("resnet20", width=1000)
    assert costs(graph).params == 272_019  # with 3 classes
    state = damaged(graph, 1, damage, settled=True)
    cut = cut_of(graph, state, "either", granularity=4)
    assert_same_function(graph, state, cut)
    assert_same_step(graph, state, cut, optimizer="sgd", running_means=True)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(
    graph=layer_graphs().map(well_conditioned).filter(lambda graph: graph.layers),
    seed=st.integers(0, 10**6),
    damage=st.sampled_from(sorted(DAMAGES)),
    criterion=st.sampled_from(["either", "either", "union"]),
    settled=st.booleans(),
    optimizer=st.sampled_from(MAIN_OPTIMIZERS),
    granularity=st.sampled_from([1, 1, 2, 3]),
)
@settings(max_examples=300, derandomize=True)
def test_random_networks(
    *, graph: LayerGraph, seed: int, damage: str, criterion: str, settled: bool, optimizer: str, granularity: int
) -> None:
    state = damaged(graph, seed, damage, settled=settled)
    cut = cut_of(graph, state, criterion, granularity)
    assert parse(render(cut.graph)) == cut.graph
    assert_same_function(graph, state, cut)
    if cut.state.keys() & dict(network(cut.graph).named_parameters()):
        assert_same_step(graph, state, cut, optimizer=optimizer, running_means=settled or criterion == "union")


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(
    graph=st.one_of(
        st.sampled_from([residual(), concat(), depthwise(), padded(), shuffle(), unpadded()]),
        layer_graphs().filter(lambda graph: graph.layers),
    ).map(well_conditioned),
    seed=st.integers(0, 10**6),
    damage=st.sampled_from(sorted(DAMAGES)),
    share=st.sampled_from([0.3, 0.7, 1.0]),
    settled=st.booleans(),
)
@settings(max_examples=150, derandomize=True)
def test_batch_norms_that_stay_in_eval_mode(*, graph: LayerGraph, seed: int, damage: str, share: float, settled: bool) -> None:
    """Nothing behind such a BatchNorm removes a constant shift in train mode."""
    state = damaged(graph, seed, damage, settled=settled)
    rng = random.Random(seed)
    always_eval = [layer.name for layer in graph.layers if layer.kind.startswith("BatchNorm") and rng.random() < share]
    cut = cut_of(graph, state, always_eval=always_eval)
    assert_same_function(graph, state, cut)
    assert_same_in_train_mode(graph, state, cut, always_eval=always_eval)
    if cut.state.keys() & dict(network(cut.graph).named_parameters()):
        assert_same_step(graph, state, cut, optimizer="sgd", running_means=settled, always_eval=always_eval)
