"""Weights that are computed: their filters go with the outputs, and of inputs that go, they are not read.

Every cut is held to the contract: the same function, and the same next step.
"""

from collections.abc import Callable

import pytest
import torch
from byhand import cut_of, frozen, made, silence, steps, width
from graphs import Sketch
from networks import State

from prunetrain.channels.computed_weights import compute_weight, find_computed_weights
from prunetrain.channels.masking import mask_channels
from prunetrain.channels.slicing import Cut
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import Attribute, LayerGraph, Value
from prunetrain.graph.render import render
from prunetrain.regularizers.fading import Fading, Ranking
from prunetrain.regularizers.group_lasso import GroupLasso

Compute = Callable[[Sketch, str, int, int], Value | Attribute]

OVER = {"dim": (1, 2, 3), "keepdim": True}


def declared(net: Sketch, name: str, made: int, read: int) -> Attribute:
    return net.declare(f"{name}_weight", (made, read, 3, 3))


def scaled_batch_norm(net: Sketch, name: str, made: int, read: int) -> Value:
    """Scaled weight standardisation, as NFNets in timm have it (arXiv 2101.08692)."""
    flat = net.call("torch.reshape", declared(net, name, made, read), shape=(1, made, -1))
    gain = net.call("torch.flatten", net.call("*", net.declare(f"{name}_gain", (made, 1, 1, 1)), 0.3))
    options = {"running_mean": None, "running_var": None, "training": True, "momentum": 0.0, "eps": 0.1}
    flat = net.step("F.batch_norm", input=flat, weight=gain, **options)
    return net.call("torch.reshape", flat, shape=(made, read, 3, 3))


def standardised_by_hand(net: Sketch, name: str, made: int, read: int) -> Value:
    """Weight standardisation (arXiv 1903.10520), with a scale for each filter."""
    weight = declared(net, name, made, read)
    centered = net.call("-", weight, net.call("torch.mean", weight, **OVER))
    spread = net.call("+", net.call("torch.std", weight, **OVER), 0.1)
    return net.call("*", net.call("/", centered, spread), net.declare(f"{name}_gain", (made, 1, 1, 1)))


def weight_norm(net: Sketch, name: str, made: int, read: int) -> Value:
    """Weight normalisation (arXiv 1602.07868)."""
    weight = declared(net, name, made, read)
    length = net.call("torch.linalg.vector_norm", weight, **OVER)
    return net.call("*", weight, net.call("/", net.declare(f"{name}_gain", (made, 1, 1, 1)), length))


def _reads(cut: Cut, name: str) -> tuple[int, ...]:
    """The inputs that a conv reads."""
    return next(tensor.values for tensor in cut.graph.declared if tensor.name == f"{name}_reads")


BY_HAND = [declared, scaled_batch_norm, standardised_by_hand, weight_norm]


def _network(compute: Compute) -> tuple[LayerGraph, State]:
    """Three convs with computed weights and biases, of 4, 5 and 3 filters."""
    net = Sketch("Toy", (2, 4, 4))
    x = net.x
    for name, read, filters in (("conv1", 2, 4), ("conv2", 4, 5), ("conv3", 5, 3)):
        weight, bias = compute(net, name, filters, read), net.declare(f"{name}_bias", (filters,))
        x = net.call("F.relu", net.call("F.conv2d", x, weight=weight, bias=bias, padding=1))
    return made(net, net.classifier("fc", x, 2))


def _silenced(state: State, name: str, *filters: int) -> State:
    """The weights with filters at zero, by their gain where they have one."""
    state = {key: tensor.clone() for key, tensor in state.items()}
    scale = f"{name}_gain" if f"{name}_gain" in state else f"{name}_weight"
    for tensor in (scale, f"{name}_bias"):
        state[tensor][list(filters)] = 0
    return state


@pytest.mark.parametrize("compute", BY_HAND)
def test_channels_go_one_after_the_other(compute: Compute) -> None:
    """Channel 1 of conv1 goes, then the first that is left; the second cut selects among the inputs that the first selected."""
    graph, state = _network(compute)
    first = cut_of(graph, _silenced(_silenced(state, "conv1", 1), "conv2", 0, 4))
    assert (first.state["conv1_weight"].shape[0], first.state["conv2_weight"].shape[0]) == (3, 3)
    assert first.state["conv2_weight"].shape[1] == 4  # what is computed from it needs all of it
    assert _reads(first, "conv2") == (0, 2, 3)
    assert _reads(first, "conv3") == (1, 2, 3)
    second = cut_of(first.graph, _silenced(first.state, "conv1", 0))
    assert _reads(second, "conv2") == (2, 3)
    assert len(steps(second, "torch.index_select")) == 2
    assert costs(second.graph).macs == 16 * 9 * (2 * 2 + 2 * 3 + 3 * 3) + 3 * 2


def test_the_file_says_what_is_left_of_filters() -> None:
    graph, state = _network(scaled_batch_norm)
    cut = cut_of(graph, _silenced(state, "conv1", 1))
    lines = [line.strip() for line in render(cut.graph, dense=graph).splitlines() if "_weight = nn.Parameter" in line]
    assert lines == [
        "self.conv1_weight = nn.Parameter(torch.zeros(3, 2, 3, 3))  # 3x4x4, was 4",
        "self.conv2_weight = nn.Parameter(torch.zeros(5, 4, 3, 3))  # 5x4x4",
        "self.conv3_weight = nn.Parameter(torch.zeros(3, 5, 3, 3))  # 3x4x4",
    ]


@pytest.mark.parametrize("compute", BY_HAND)
def test_what_is_not_zero_stays(compute: Compute) -> None:
    graph, state = _network(compute)
    silent = _silenced(state, "conv1", 1)
    silent["conv1_bias"][1] = 0.5
    assert len(cut_of(graph, silent).state["conv1_weight"]) == 4


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_a_batch_norm_brings_channels_to_zero(bias: float) -> None:
    """Standardised weights without scales never fade; the BatchNorm behind them does."""
    net = Sketch("Toy", (2, 4, 4))
    x = net.call("F.conv2d", net.x, weight=net.call("F.normalize", declared(net, "conv1", 4, 2), dim=1), padding=1)
    x = net.call("F.relu", net.norm("bn", x))
    x = net.call("F.conv2d", x, weight=net.call("F.normalize", declared(net, "conv2", 3, 4), dim=1), padding=1)
    graph, state = made(net, net.classifier("fc", x, 2))
    assert Ranking(graph, state, criterion="either").least_macs() < costs(graph).macs / 2
    state["bn.weight"][2], state["bn.bias"][2] = 0, bias
    assert len(cut_of(graph, state).state["conv1_weight"]) == (4 if bias else 3)


def test_a_residual_branch_may_begin_with_scales_of_zero() -> None:
    net = Sketch("Toy", (2, 4, 4))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    branch = net.norm("bn", net.call("F.conv2d", x, weight=weight_norm(net, "conv2", 4, 4), padding=1))
    graph, state = made(net, net.classifier("fc", net.call("+", x, branch), 2))
    state["bn.weight"][:] = state["bn.bias"][:] = 0
    assert cut_of(graph, state).graph == graph


def test_a_bias_is_absorbed_by_the_layer_behind() -> None:
    net = Sketch("Toy", (2, 4, 4))
    weight = weight_norm(net, "conv1", 4, 2)
    x = net.call("F.conv2d", net.x, weight=weight, bias=net.declare("conv1_bias", (4,)), padding=1)
    graph, state = made(net, net.classifier("fc", net.conv("conv2", x, 3, kernel_size=1), 2))
    state["conv1_gain"][2] = 0
    assert len(cut_of(graph, state).state["conv1_gain"]) == 3


@pytest.mark.parametrize("compute", BY_HAND)
@pytest.mark.parametrize("groups", [2, 6])
def test_grouped(compute: Compute, groups: int) -> None:
    """Of six groups those that are zero go; of two groups with three channels, each loses the same."""
    net = Sketch("Toy", (2, 4, 4))
    x = net.call("F.relu", net.conv("conv1", net.x, 6, kernel_size=1))
    x = net.call("F.conv2d", x, weight=compute(net, "conv2", 6, 6 // groups), groups=groups, padding=1)
    graph, state = made(net, net.classifier("fc", net.conv("conv3", x, 3, kernel_size=1), 2))
    gone = [1, 4]
    silence(state, "conv1", *gone)
    state["conv2_gain" if "conv2_gain" in state else "conv2_weight"][gone] = 0
    cut = cut_of(graph, state)
    assert width(cut, "conv1") == [4]
    assert cut.state["conv2_weight"].shape[0] == 4
    assert steps(cut, "F.conv2d")[0]["groups"] == (2 if groups == 2 else 4)


def test_linear_maps() -> None:
    """A normalised classifier: the images' features and its weight are scaled to length 1."""
    net = Sketch("Toy", (3, 4, 4))
    x = net.call("torch.flatten", net.call("F.adaptive_avg_pool2d", net.conv("conv1", net.x, 5, kernel_size=1), output_size=1), start_dim=1)
    weight = net.call("F.normalize", net.declare("head_weight", (4, 5)), dim=1)
    graph, state = made(net, net.call("F.linear", net.call("F.normalize", x, dim=1), weight=weight))
    silence(state, "conv1", 0, 3)
    cut = cut_of(graph, state)
    assert width(cut, "conv1") == [3]
    assert _reads(cut, "head") == (1, 2, 4)


def test_one_weight_of_two_convs() -> None:
    """Both lose the same filters; each reads what is left of its own input."""
    net = Sketch("Toy", (2, 4, 4))
    weight = weight_norm(net, "shared", 4, 4)
    one, two = (net.call("F.conv2d", net.conv(name, net.x, 4, kernel_size=1), weight=weight, padding=1) for name in ("a", "b"))
    graph, state = made(net, net.classifier("fc", net.cat(one, two), 2))
    silence(state, "a", 1)
    cut = cut_of(graph, state)
    assert width(cut, "a", "b") == [3, 4]
    silence(cut.state, "b", 2)
    cut.state["shared_gain"][0] = 0
    again = cut_of(cut.graph, cut.state)
    assert width(again, "a", "b") == [3, 3]
    assert len(again.state["shared_weight"]) == 3


def test_what_depends_on_the_images_freezes() -> None:
    net = Sketch("Toy", (2, 4, 4))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    strength = net.call("torch.sigmoid", net.call("torch.mean", x, dim=(0, 1, 2, 3)))
    weight = net.call("*", declared(net, "conv2", 3, 4), strength)
    graph, _ = made(net, net.classifier("fc", net.call("F.conv2d", x, weight=weight, padding=1), 2))
    assert frozen(graph, "conv1") == "F.conv2d is not followed"


def test_a_weight_whose_filters_are_the_same_freezes() -> None:
    """Blurring with one window for all channels: the size of what is broadcast would have to change."""
    net = Sketch("Toy", (2, 4, 4))
    weight = net.call("torch.broadcast_to", net.declare("blur", (1, 1, 3, 3), "buffer"), size=(4, 1, 3, 3))
    x = net.call("F.conv2d", net.conv("conv1", net.x, 4, kernel_size=1), weight=weight, groups=4)
    graph, _ = made(net, net.classifier("fc", x, 2))
    assert frozen(graph, "conv1") == "F.conv2d is not followed"


@pytest.mark.parametrize("compute", BY_HAND)
def test_fading_leaves_stored_weights_alone(compute: Compute) -> None:
    """Gains and biases go to zero, and the filter is computed from the same weight until it is cut."""
    graph, state = _network(compute)
    ranking = Ranking(graph, state, criterion="either")
    chosen = ranking.weakest(costs(graph).macs // 2)
    faded = {name: tensor.clone() for name, tensor in state.items()}
    fading = Fading(graph, find_spaces(graph), faded, chosen)
    fading.scale_(0.5)
    fading.scale_(0.0)
    for name in ("conv1", "conv2"):
        assert bool(torch.equal(faded[f"{name}_weight"], state[f"{name}_weight"])) == (compute is not declared)
    cut = cut_of(graph, faded)
    assert costs(cut.graph).macs <= costs(graph).macs // 2
    assert costs(cut.graph).macs == ranking.macs_without(chosen)


@pytest.mark.parametrize("compute", BY_HAND)
def test_the_weakest_computed_filters_fade_first(compute: Compute) -> None:
    graph, state = _network(compute)
    scale = "conv1_weight" if compute is declared else "conv1_gain"
    state[scale][2] *= 1e-3
    weights = find_computed_weights(graph)
    conv2 = next(step["weight"] for step in graph.steps if step.target == "F.conv2d" and step["weight"] in weights.fixed)
    assert compute_weight(graph, state, conv2)[2].abs().max() < 1e-2
    reading = "conv2_weight"
    state[reading][:, 2] = state[reading].mean(dim=(1, 2, 3))[:, None, None]  # what conv2 reads of it is small, too
    spaces = find_spaces(graph)
    weakest = Ranking(graph, state, criterion="either").weakest(costs(graph).macs - 1)
    assert weakest == [spaces.ids["conv1_weight", "features"][2]]


def test_windows_of_depthwise_convs_do_not_count() -> None:
    """As those of layers do not: each is one more number of its channel, and not a slice of every channel."""
    net = Sketch("Toy", (2, 4, 4))
    x = net.call("F.conv2d", net.conv("conv1", net.x, 4, kernel_size=1), weight=weight_norm(net, "conv2", 4, 1), groups=4, padding=1)
    graph, state = made(net, net.classifier("fc", x, 2))
    for name in ("conv1.weight", "fc.weight"):
        state[name][:] = 1
    state["conv1.weight"][0] = 0.5
    assert Ranking(graph, state, criterion="either").weakest(costs(graph).macs - 1) == [find_spaces(graph).ids["conv1", "out"][0]]


@pytest.mark.parametrize("again", [False, True])
def test_masks_leave_stored_weights_alone(again: bool) -> None:
    """Also after a cut, when the weight that is computed has fewer numbers than the tensor that it is computed from."""
    graph, state = _network(weight_norm)
    if again:
        cut = cut_of(graph, _silenced(state, "conv1", 0))
        graph, state = cut.graph, cut.state
    spaces = find_spaces(graph)
    gone = torch.zeros(spaces.num_channels, dtype=torch.bool).numpy()
    gone[spaces.ids["conv2_gain", "features"][0]] = True
    masked = mask_channels(graph, state, spaces, gone)
    assert torch.equal(masked["conv2_weight"], state["conv2_weight"])
    assert masked["conv2_gain"][0] == 0


def test_weights_that_are_joined_are_left_alone_whatever_their_sizes() -> None:
    """Filters of length 1, most of them from another tensor than the rest; at zero they would be 0/0."""
    net = Sketch("Toy", (2, 4, 4))
    parts = [net.declare("most", (4, 2, 1, 1)), net.declare("rest", (2, 2, 1, 1))]
    weight = net.cat(*(net.call("/", part, net.call("torch.linalg.vector_norm", part, dim=1, keepdim=True)) for part in parts), dim=0)
    weight = net.call("*", weight, net.declare("gain", (6, 1, 1, 1)))
    graph, state = made(net, net.classifier("fc", net.call("F.conv2d", net.x, weight=weight), 2))
    spaces = find_spaces(graph)
    gone = torch.zeros(spaces.num_channels, dtype=torch.bool).numpy()
    gone[spaces.ids["rest", "features"][0]] = True
    masked = mask_channels(graph, state, spaces, gone)
    assert torch.equal(masked["rest"], state["rest"])
    assert len(cut_of(graph, masked).state["rest"]) == 1


def test_the_lasso_on_a_few_layers_is_as_strong_as_on_all() -> None:
    """Squeeze and excitation between convs of computed weights: of its channels and those of conv1, 4 of 12 have groups."""
    net = Sketch("Toy", (2, 4, 4))
    x = net.call("F.conv2d", net.x, weight=weight_norm(net, "conv1", 8, 2), padding=1)
    gate = net.conv("reduce", net.call("F.adaptive_avg_pool2d", x, output_size=1), 4, kernel_size=1)
    gate = net.call("torch.sigmoid", net.conv("expand", net.call("F.relu", gate), 8, kernel_size=1))
    graph, state = made(net, net.classifier("fc", net.call("*", x, gate), 2))
    lasso = GroupLasso(graph, find_spaces(graph), {"reduce.weight": state["reduce.weight"]}, groups="coupled")
    assert lasso.strength_for(0.5, 2.0) == pytest.approx(2.0 / (3 * float(lasso.penalty())))


def test_the_lasso_leaves_channels_of_computed_weights_alone() -> None:
    """Else it would act on the classifier alone, with the strength for a whole network."""
    graph, state = _network(weight_norm)
    lasso = GroupLasso(graph, find_spaces(graph), {"fc.weight": state["fc.weight"]}, groups="coupled")
    assert lasso.penalty() == 0
    assert not lasso.has_groups
    assert lasso.strength_for(0.5, 2.0) == 0
