"""Reductions over the channels: a removed channel still counts in them, as a zero.

Every cut is held to the contract: the same function, and the same next step.
"""

from collections.abc import Callable

import pytest
import torch
from byhand import cut_of, frozen, ignore, made, silence, steps, width
from graphs import Sketch

from prunetrain.graph.layergraph import LayerGraph, Value

Normalize = Callable[[Sketch, Value], Value]


def _mean(net: Sketch, x: Value) -> Value:
    return net.call("torch.mean", x, dim=1, keepdim=True)


def layer_norm_by_hand(net: Sketch, x: Value) -> Value:
    """LayerNorm over the channels of images, as in ConvNeXt's own code."""
    centered = net.call("-", x, _mean(net, x))
    variance = _mean(net, net.call("torch.pow", centered, exponent=2))
    normal = net.call("/", net.call("-", x, _mean(net, x)), net.call("torch.sqrt", net.call("+", variance, 0.1)))
    weight, bias = (net.call("torch.unflatten", net.declare(name, (4,)), dim=0, sizes=(4, 1, 1)) for name in ("weight", "bias"))
    return net.call("+", net.call("*", weight, normal), bias)


def layer_norm_of_last_dimension(net: Sketch, x: Value) -> Value:
    """The same on images whose channels come last; the mean loses its dimension and gets it back."""
    x = net.call("torch.permute", x, dims=(0, 2, 3, 1))
    centered = net.call("-", x, net.call("torch.mean", x, dim=-1, keepdim=True))
    variance = net.call("torch.unsqueeze", net.call("torch.mean", net.call("torch.square", centered), dim=-1), dim=-1)
    normal = net.call("/", centered, net.call("torch.sqrt", net.call("+", variance, 0.1)))
    return net.call("torch.permute", net.call("*", normal, net.declare("weight", (4,))), dims=(0, 3, 1, 2))


def rms_norm_by_hand(net: Sketch, x: Value) -> Value:
    power = net.call("torch.rsqrt", net.call("+", _mean(net, net.call("torch.square", x)), 0.1))
    return net.call("*", net.call("*", x, power), net.declare("weight", (4, 1, 1)))


def group_norm(net: Sketch, x: Value) -> Value:
    return net.layer("norm", "GroupNorm", x, num_groups=1, num_channels=4)


def spatial_attention(net: Sketch, x: Value) -> Value:
    """The second half of CBAM (arXiv 1807.06521)."""
    both = net.cat(_mean(net, x), net.call("torch.max", x, dim=1, keepdim=True))
    return net.call("*", x, net.call("torch.sigmoid", net.conv("attention", both, 1, kernel_size=3, padding=1)))


def global_response(net: Sketch, x: Value) -> Value:
    """Global Response Normalization, as in ConvNeXt V2 (arXiv 2301.00808)."""
    norms = net.call("torch.linalg.vector_norm", x, dim=(2, 3), keepdim=True)
    relative = net.call("/", norms, net.call("+", _mean(net, norms), 0.1))
    scaled = net.step("torch.addcmul", input=net.declare("beta", (1, 4, 1, 1)), tensor1=net.declare("gamma", (4, 1, 1)), tensor2=x)
    return net.call("+", net.call("*", scaled, relative), x)


def softmax(net: Sketch, x: Value) -> Value:
    return net.call("*", x, net.call("F.softmax", x, dim=1))


def unit_length(net: Sketch, x: Value) -> Value:
    return net.call("F.normalize", x, dim=1)


def variance(net: Sketch, x: Value) -> Value:
    spread = net.call("torch.std", x, dim=1, correction=1, keepdim=True)
    return net.call("/", x, net.call("+", spread, 0.1))


def product_of_sums(net: Sketch, x: Value) -> Value:
    return net.call("*", x, net.call("torch.tanh", net.call("torch.sum", x, dim=1, keepdim=True)))


def efficient_channel_attention(net: Sketch, x: Value) -> Value:
    """A conv that slides over the channels' means, ECA (arXiv 1910.03151)."""
    means = net.call("torch.unsqueeze", net.call("torch.mean", x, dim=(2, 3)), dim=1)
    slid = net.layer("slide", "Conv1d", means, in_channels=1, out_channels=1, kernel_size=3, padding=1, bias=False)
    return net.call(
        "*", x, net.call("torch.unflatten", net.call("torch.sigmoid", net.call("[]", slid, dim=1, index=0)), dim=1, sizes=(4, 1, 1))
    )


BY_HAND = [
    *(layer_norm_by_hand, layer_norm_of_last_dimension, rms_norm_by_hand, group_norm, spatial_attention, global_response),
    *(softmax, unit_length, variance, product_of_sums, efficient_channel_attention),
]


def _network(normalize: Normalize) -> tuple[LayerGraph, dict[str, torch.Tensor]]:
    net = Sketch("Toy", (2, 3, 3))
    x = normalize(net, net.conv("conv1", net.x, 4, kernel_size=1))
    return made(net, net.classifier("fc", net.conv("conv2", x, 3, kernel_size=1), 2))


@pytest.mark.parametrize("normalize", BY_HAND)
def test_channels_go_one_after_the_other(normalize: Normalize) -> None:
    """Channel 1 goes, then the first that is left; the second cut makes paddings longer and adds no steps."""
    graph, state = _network(normalize)
    assert frozen(graph, "conv1") == ""
    silence(state, "conv1", 1)
    ignore(state, "conv2", 1)
    first = cut_of(graph, state)
    assert width(first, "conv1") == [3]
    again = {name: tensor.clone() for name, tensor in first.state.items()}
    silence(again, "conv1", 0)
    ignore(again, "conv2", 0)
    second = cut_of(first.graph, again)
    assert width(second, "conv1") == [2]
    assert [step.target for step in second.graph.steps] == [step.target for step in first.graph.steps]


@pytest.mark.parametrize("normalize", BY_HAND)
def test_what_is_not_zero_stays(normalize: Normalize) -> None:
    graph, state = _network(normalize)
    state["conv1.weight"][1], state["conv1.bias"][1] = 0, 0.5
    ignore(state, "conv2", 1)
    assert width(cut_of(graph, state), "conv1") == [4]


@pytest.mark.parametrize(("kind", "sizes"), [("GroupNorm", {"num_groups": 1, "num_channels": 4}), ("LayerNorm", {"normalized_shape": 4})])
def test_a_normalisation_that_is_called_twice_is_cut_once(kind: str, sizes: dict[str, int]) -> None:
    """What both calls are padded with is no channel, so a network without dead channels stays as it is."""
    net = Sketch("Toy", (4, 3, 3))
    first = net.layer("norm", kind, _channels_at(net, net.conv("conv1", net.x, 4, kernel_size=1), kind), **sizes)
    second = net.layer("norm", kind, _channels_at(net, net.conv("conv2", net.x, 4, kernel_size=1), kind), **sizes)
    x = _channels_at(net, net.call("+", first, second), kind, back=True)
    graph, state = made(net, net.classifier("fc", x, 2))
    silence(state, "conv1", 1, 2)
    silence(state, "conv2", 1, 2)
    ignore(state, "fc", 1, 2)
    cut = cut_of(graph, state)
    assert width(cut, "conv1", "conv2") == [2, 2]
    assert cut_of(cut.graph, cut.state).graph == cut.graph


def _channels_at(net: Sketch, x: Value, kind: str, *, back: bool = False) -> Value:
    """Images as a normalisation reads them: LayerNorm wants channels last."""
    return net.call("torch.permute", x, dims=(0, 3, 1, 2) if back else (0, 2, 3, 1)) if kind == "LayerNorm" else x


def test_mean_is_taken_over_zeros() -> None:
    graph, state = _network(spatial_attention)
    silence(state, "conv1", 0, 2)
    ignore(state, "conv2", 0, 2)
    cut = cut_of(graph, state)
    assert steps(cut, "F.pad") == [{"pad": (0, 0, 0, 0, 0, 2)}]  # once, for the mean and the maximum


def test_centered_values_are_computed_again_at_full_length() -> None:
    """Where x is zero, x - mean is not: so x is padded, and the mean is subtracted again."""
    graph, state = _network(layer_norm_by_hand)
    silence(state, "conv1", 3)
    ignore(state, "conv2", 3)
    cut = cut_of(graph, state)
    targets = [step.target for step in cut.graph.steps]
    assert targets[:6] == ["self.conv1", "F.pad", "torch.mean", "-", "torch.pow", "torch.mean"]
    assert targets.count("F.pad") == 1


def test_sum_needs_no_padding() -> None:
    graph, state = _network(product_of_sums)
    silence(state, "conv1", 2)
    ignore(state, "conv2", 2)
    assert steps(cut_of(graph, state), "F.pad") == []


def test_channels_of_a_padded_shortcut_and_its_mean() -> None:
    """Zeros that the network itself pads with are part of the padding that the mean gets."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.call("F.pad", net.conv("conv1", net.x, 3, kernel_size=1), pad=(0, 0, 0, 0, 0, 1))
    x = net.call("*", x, net.call("torch.sigmoid", _mean(net, x)))
    x = net.call("+", x, net.conv("conv2", net.x, 4, kernel_size=1))
    graph, state = made(net, net.classifier("fc", x, 2))
    silence(state, "conv1", 0)
    silence(state, "conv2", 0, 3)
    ignore(state, "fc", 0, 3)
    cut = cut_of(graph, state)
    assert width(cut, "conv1", "conv2") == [2, 2]
    assert steps(cut, "F.pad") == [{"pad": (0, 0, 0, 0, 0, 2)}]  # the network's own has nothing left to pad


def test_norm_of_one_group_keeps_its_length() -> None:
    graph, state = _network(group_norm)
    silence(state, "conv1", 1)
    ignore(state, "conv2", 1)
    cut = cut_of(graph, state)
    assert cut.graph.layer("norm") == graph.layer("norm")
    assert torch.equal(cut.state["norm.weight"], state["norm.weight"][[0, 2, 3, 1]])
    assert steps(cut, "[:]") == [{"dim": 1, "stop": 3}]


def test_a_selection_in_front_of_a_conv_over_channels_may_have_other_readers() -> None:
    """The conv reads channels in the network's own order, and so does a sum of the same selection."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    means = net.call("torch.unsqueeze", net.call("torch.mean", x, dim=(2, 3)), dim=1)
    ordered = net.call("torch.index_select", means, dim=2, index=net.index("order", 3, 0, 2, 1))
    slid = net.layer("slide", "Conv1d", ordered, in_channels=1, out_channels=1, kernel_size=3, padding=1)
    graph, state = made(net, net.linear("fc", net.call("torch.squeeze", net.call("+", slid, ordered), dim=1), 2))
    silence(state, "conv1", 0)
    ignore(state, "fc", 1)
    cut = cut_of(graph, state)
    assert width(cut, "conv1") == [3]
    again = {name: tensor.clone() for name, tensor in cut.state.items()}
    silence(again, "conv1", 2)
    ignore(again, "fc", 0)
    assert width(cut_of(cut.graph, again), "conv1") == [2]
