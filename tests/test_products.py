"""Matrix products: channels that they pass on, channels that they sum up, and what stays.

Every cut is held to the contract: the same function, and the same next step.
"""

import pytest
import torch
from byhand import cut_of, frozen, ignore, made, silence, steps, width
from graphs import Sketch

from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import LayerGraph, Value
from prunetrain.regularizers.fading import Fading, Ranking

Made = tuple[LayerGraph, dict[str, torch.Tensor]]


def rows(net: Sketch, x: Value) -> Value:
    """Images (N, C, H, W) as (N, C, H * W)."""
    return net.call("torch.flatten", x, start_dim=2)


def columns(net: Sketch, x: Value) -> Value:
    """Images (N, C, H, W) as (N, H * W, C)."""
    return net.call("torch.transpose", rows(net, x), dim0=1, dim1=2)


def global_context() -> Made:
    """A pixel's weight is the same for all channels; their weighted means go back to the image (GCNet, arXiv 1904.11492)."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    weights = net.call("F.softmax", columns(net, net.conv("mask", x, 1, kernel_size=1)), dim=1)
    context = net.call("torch.unsqueeze", net.call("@", rows(net, x), weights), dim=-1)
    x = net.call("+", x, net.conv("transform", context, 4, kernel_size=1))
    return made(net, net.classifier("fc", x, 2))


def non_local() -> Made:
    """Every pixel attends to all others, with one head (arXiv 1711.07971)."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    query, key, value = (net.conv(name, x, 3, kernel_size=1) for name in ("query", "key", "value"))
    weights = net.call("F.softmax", net.call("@", columns(net, query), rows(net, key)), dim=-1)
    read = net.call("torch.transpose", net.call("@", weights, columns(net, value)), dim0=1, dim1=2)
    x = net.call("+", x, net.conv("project", net.call("torch.unflatten", read, dim=2, sizes=(3, 3)), 4, kernel_size=1))
    return made(net, net.classifier("fc", x, 2))


def test_rows_pass_through() -> None:
    graph, state = global_context()
    assert frozen(graph, "conv1") == ""
    silence(state, "conv1", 1)
    silence(state, "transform", 1)
    ignore(state, "fc", 1)
    cut = cut_of(graph, state)
    assert width(cut, "conv1", "transform") == [3, 3]
    assert cut.graph.layer("mask")["in_channels"] == 3


def test_a_weight_that_all_channels_share_stays() -> None:
    graph, _ = global_context()
    assert frozen(graph, "mask") == "broadcast by @"


def test_a_constant_row_stays() -> None:
    """Its product is no constant."""
    graph, state = global_context()
    silence(state, "conv1", 1)
    state["conv1.bias"][1] = 0.5
    silence(state, "transform", 1)
    ignore(state, "mask", 1)
    ignore(state, "fc", 1)
    assert width(cut_of(graph, state), "conv1") == [4]


def test_columns_pass_through() -> None:
    graph, state = non_local()
    silence(state, "value", 0, 2)
    cut = cut_of(graph, state)
    assert width(cut, "query", "key", "value") == [3, 3, 1]
    assert cut.graph.layer("project")["in_channels"] == 1


def test_channels_that_are_summed_up_go_together() -> None:
    graph, state = non_local()
    silence(state, "query", 1)
    silence(state, "key", 1)
    cut = cut_of(graph, state)
    assert width(cut, "query", "key", "value") == [2, 2, 3]
    assert steps(cut, "F.pad") == []


def test_a_channel_that_would_still_be_summed_up_stays() -> None:
    graph, state = non_local()
    state["query.weight"][1], state["query.bias"][1] = 0, 0.5  # times a key that is alive
    assert width(cut_of(graph, state), "query", "key") == [3, 3]


def test_channels_that_are_centered_before_they_are_summed_up_stay() -> None:
    """Where the query is zero, the query less its mean is not."""
    net = Sketch("Toy", (2, 3, 3))
    query, key = (net.conv(name, net.x, 3, kernel_size=1) for name in ("query", "key"))
    pixels = columns(net, query)
    centered = net.call("-", pixels, net.call("torch.mean", pixels, dim=2, keepdim=True))
    graph, state = made(net, net.linear("fc", net.call("@", centered, rows(net, key)), 2))
    silence(state, "query", 1)
    silence(state, "key", 1)
    assert width(cut_of(graph, state), "query", "key") == [3, 3]


@pytest.mark.parametrize("name", ["query", "value"])
def test_channels_fade_with_their_biases(name: str) -> None:
    graph, state = non_local()
    spaces = find_spaces(graph)
    faded = {tensor: weight.clone() for tensor, weight in state.items()}
    Fading(graph, spaces, faded, [int(spaces.ids[name, "out"][1])]).scale_(0.0)
    assert faded[f"{name}.bias"][1] == 0
    assert width(cut_of(graph, faded), name) == [2]


def test_all_but_the_strongest_channel_of_a_space_can_fade() -> None:
    graph, state = non_local()
    spaces = find_spaces(graph)
    chosen = Ranking(graph, state, criterion="either").weakest(0)
    assert [len(set(chosen) & set(spaces.ids[name, "out"].tolist())) for name in ("conv1", "query", "value")] == [3, 2, 2]


def test_products_of_all_channels_with_all_stay() -> None:
    """Bilinear pooling: a number for each pair of channels."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    graph, state = made(net, net.linear("fc", net.call("torch.flatten", net.call("@", rows(net, x), columns(net, x)), start_dim=1), 2))
    assert frozen(graph, "conv1") == "@ is not followed"
    silence(state, "conv1", 1)
    assert width(cut_of(graph, state), "conv1") == [4]
