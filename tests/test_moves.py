"""Operations that move, split, join and normalise channels, by hand: which channels are one, what a cut leaves, how steps are rewritten.

Every cut is held to the contract: the same function, and the same next step.
"""

from typing import Any

import pytest
import torch
from byhand import cut_of, ids, ignore, made, silence, steps, width
from graphs import Sketch, windows
from networks import new_state, well_conditioned

from prunetrain.channels.spaces import find_spaces

# Joining and splitting.


def test_concatenation_and_a_slice_across_its_seam() -> None:
    """Of a (3) 1 goes, of b (4) 2: left are 0 2 | 0 1 3 of 7. The slice 2:6 is a2 b0 b1 b2, of which 1:4 is left."""
    net = Sketch("Toy", (2, 3, 3))
    joined = net.cat(net.conv("a", net.x, 3, kernel_size=1), net.conv("b", net.x, 4, kernel_size=1))
    whole, part = net.conv("whole", joined, 2, kernel_size=1), net.conv("part", net.slice(joined, 1, 2, 6), 2, kernel_size=1)
    graph, state = made(net, net.classifier("fc", net.call("+", whole, part), 2))
    assert ids(graph, "whole", "in") == [0, 1, 2, 3, 4, 5, 6]
    assert ids(graph, "part", "in") == [0, 1, 2, 3]
    ignore(state, "whole", 1, 5)
    ignore(state, "part", 3)
    cut = cut_of(graph, state)
    assert width(cut, "a", "b") == [2, 3]
    assert steps(cut, "[:]") == [{"dim": 1, "start": 1, "stop": 4}]
    assert torch.equal(cut.state["part.weight"], state["part.weight"][:, :3])


def test_dense_block_passes_all_on() -> None:
    """Each layer reads all before it: a channel goes when none of its readers wants it."""
    net = Sketch("Toy", (2, 3, 3))
    first = net.conv("first", net.x, 3, kernel_size=1)
    second = net.conv("second", first, 2, kernel_size=1)
    third = net.conv("third", net.cat(first, second), 2, kernel_size=1)
    graph, state = made(net, net.classifier("fc", net.cat(first, second, third), 2))
    assert ids(graph, "fc", "in") == [0, 1, 2, 3, 4, 5, 6]
    ignore(state, "second", 0, 1)
    ignore(state, "third", 0, 2, 4)
    ignore(state, "fc", 0, 1, 4)
    assert width(cut_of(graph, state), "first", "second", "third") == [2, 1, 2]  # 0 of first and 1 of second


def test_halves_keep_different_counts() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("conv1", net.x, 6, kernel_size=1)
    left, right = net.conv("left", net.slice(x, 1, stop=3), 2, kernel_size=1), net.conv("right", net.slice(x, 1, 3), 2, kernel_size=1)
    graph, state = made(net, net.classifier("fc", net.call("+", left, right), 2))
    ignore(state, "left", 0)
    ignore(state, "right", 1, 2)
    cut = cut_of(graph, state)
    assert steps(cut, "[:]") == [{"dim": 1, "stop": 2}, {"dim": 1, "start": 2}]
    assert [cut.graph.layer(name)["in_channels"] for name in ("left", "right")] == [2, 1]


def test_dead_half_of_a_concatenation_keeps_a_channel() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.cat(net.conv("a", net.x, 3, kernel_size=1), net.conv("b", net.x, 3, kernel_size=1))
    graph, state = made(net, net.classifier("fc", x, 2))
    ignore(state, "fc", 3, 4, 5)
    cut = cut_of(graph, state)
    assert width(cut, "a", "b") == [3, 1]
    assert cut.rescued_spaces == ("b",)


def test_same_result_joined_twice() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.conv("conv1", net.x, 3, kernel_size=1)
    graph, state = made(net, net.classifier("fc", net.conv("conv2", net.cat(x, x), 2, kernel_size=1), 2))
    assert ids(graph, "conv2", "in") == [0, 1, 2, 0, 1, 2]
    ignore(state, "conv2", 0, 3, 4)  # of channel 1 the first copy is read
    cut = cut_of(graph, state)
    assert torch.equal(cut.state["conv2.weight"], state["conv2.weight"][:, [1, 2, 4, 5]])


def test_joined_beside_the_channels_is_one() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.cat(net.conv("a", net.x, 3, kernel_size=1), net.conv("b", net.x, 3, kernel_size=1), dim=3)
    graph, state = made(net, net.classifier("fc", x, 2))
    spaces = find_spaces(graph)
    assert spaces.ids["a", "out"].tolist() == spaces.ids["b", "out"].tolist()
    ignore(state, "fc", 1)
    assert width(cut_of(graph, state), "a", "b") == [2, 2]


# Other places.


@pytest.mark.parametrize(
    ("unread", "order"),
    [
        ((2, 3), None),  # channels 1 and 4: a pair of each group is left, and still a shuffle
        ((0, 2), (1, 2, 0, 3)),  # channels 0 and 1: 3 4 2 5 are left, which are now 1 2 0 3
    ],
)
def test_channel_shuffle(unread: tuple[int, ...], order: tuple[int, ...] | None) -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.call("F.channel_shuffle", net.conv("conv1", net.x, 6, kernel_size=1), groups=2)  # 0 3 1 4 2 5
    graph, state = made(net, net.classifier("fc", x, 2))
    assert ids(graph, "fc", "in") == [0, 3, 1, 4, 2, 5]
    ignore(state, "fc", *unread)
    cut = cut_of(graph, state)
    assert width(cut, "conv1") == [4]
    assert (len(steps(cut, "F.channel_shuffle")), len(steps(cut, "torch.index_select"))) == ((1, 0) if order is None else (0, 1))
    assert [tensor.values for tensor in cut.graph.declared] == ([] if order is None else [order])


def test_sizes_that_steps_spell_out() -> None:
    """4x2x3 as 4x6, turned to 6x4, and 5 features of each pixel as 5x1 and back."""
    net = Sketch("Toy", (2, 2, 3))
    x = net.call("torch.reshape", net.conv("conv1", net.x, 4, kernel_size=1), shape=(-1, 4, 6))
    x = net.linear("fc1", net.call("torch.transpose", x, dim0=1, dim1=2), 5)
    x = net.call("torch.permute", net.call("torch.unflatten", x, dim=-1, sizes=(5, 1)), dims=(0, 3, 1, 2))  # 1x6x5
    x = net.call("torch.broadcast_to", x, size=(-1, 2, 6, 5))
    graph, state = made(net, net.linear("fc2", net.call("torch.mean", net.linear("mix", x, 3), dim=(1, 2)), 2))
    ignore(state, "fc1", 2)
    ignore(state, "mix", 0, 4)
    cut = cut_of(graph, state)
    assert width(cut, "conv1", "fc1") == [3, 3]
    assert steps(cut, "torch.reshape") == [{"shape": (-1, 3, 6)}]
    assert steps(cut, "torch.unflatten") == [{"dim": -1, "sizes": (3, 1)}]
    assert steps(cut, "torch.broadcast_to") == [{"size": (-1, 2, 6, 3)}]


def test_split_attention_ties_its_parts() -> None:
    """As in ResNeSt: two parts of 3 channels, added up; their weights come from the sum."""
    net = Sketch("Toy", (2, 3, 3))
    parts = net.call("torch.unflatten", net.conv("conv1", net.x, 6, kernel_size=1), dim=1, sizes=(2, 3))
    pooled = net.call("torch.mean", net.call("torch.sum", parts, dim=1), dim=(2, 3), keepdim=True)
    weights = net.call("torch.unflatten", net.conv("attend", pooled, 6, kernel_size=1), dim=1, sizes=(2, 3))
    x = net.call("torch.sum", net.call("*", parts, net.call("F.softmax", weights, dim=1)), dim=1)
    graph, state = made(net, net.classifier("fc", x, 2))
    assert ids(graph, "conv1", "out") == ids(graph, "attend", "out") == [0, 1, 2, 0, 1, 2]
    ignore(state, "attend", 1)
    ignore(state, "fc", 1)
    cut = cut_of(graph, state)
    assert steps(cut, "torch.unflatten") == [{"dim": 1, "sizes": (2, 2)}] * 2
    assert torch.equal(cut.state["attend.weight"], state["attend.weight"][[0, 2, 3, 5]][:, [0, 2]])


def test_pixel_shuffle_takes_four_for_one_and_unshuffle_gives_four() -> None:
    net = Sketch("Toy", (2, 4, 4))
    x = net.call("F.pixel_shuffle", net.conv("conv1", net.x, 8, kernel_size=1), upscale_factor=2)  # 2x8x8
    x = net.call("F.pixel_unshuffle", net.conv("conv2", x, 3, kernel_size=1), downscale_factor=2)  # 12x4x4
    graph, state = made(net, net.classifier("fc", x, 2))
    assert ids(graph, "conv1", "out") == [0] * 4 + [1] * 4
    assert ids(graph, "fc", "in") == [0] * 4 + [1] * 4 + [2] * 4
    ignore(state, "conv2", 0)
    ignore(state, "fc", 4, 5, 6, 7, 8)  # of channel 2 three of four are read
    assert width(cut_of(graph, state), "conv1", "conv2") == [4, 2]


@pytest.mark.parametrize("options", [{"size": (5, 7), "mode": "nearest"}, {"scale_factor": 2, "mode": "bilinear", "align_corners": False}])
def test_interpolation_passes_channels_and_constants(options: dict[str, Any]) -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.call("F.interpolate", net.conv("conv1", net.x, 3, kernel_size=1), **options)
    graph, state = made(net, net.classifier("fc", net.conv("conv2", x, 2, kernel_size=3), 2))
    state["conv1.weight"][1], state["conv1.bias"][1] = 0, 2.0
    cut = cut_of(graph, state)
    assert width(cut, "conv1") == [2]
    assert torch.allclose(cut.state["conv2.bias"], state["conv2.bias"] + 2 * state["conv2.weight"][:, 1].sum((1, 2)), rtol=1e-12)


def test_windows_that_are_rolled_and_padded() -> None:
    graph = well_conditioned(windows())
    state = new_state(graph, 0)
    ignore(state, "blocks_0_fc2", 3, 6)
    silence(state, "stem", 1)
    ignore(state, "blocks_0_fc1", 1)
    ignore(state, "fc", 1)
    silence(state, "blocks_0_fc2", 1)
    cut = cut_of(graph, state)
    assert width(cut, "blocks_0_fc1", "stem", "blocks_0_fc2") == [6, 3, 3]
    assert [step["shape"][-1] for step in steps(cut, "torch.reshape")] == [3, 3, 3]

    net = Sketch("Toy", (2, 3, 3))
    x = net.call("torch.permute", net.conv("conv1", net.x, 4, kernel_size=1), dims=(0, 2, 3, 1))
    x = net.call("torch.reshape", net.call("F.pad", x, pad=(0, 0, 0, 1, 0, 1)), shape=(-1, 2, 2, 2, 2, 4))
    x = net.linear("fc1", net.call("torch.flatten", net.call("torch.permute", x, dims=(0, 1, 3, 2, 4, 5)), start_dim=1, end_dim=4), 3)
    graph, state = made(net, net.linear("fc2", net.call("torch.mean", x, dim=1), 2))
    ignore(state, "fc1", 0)
    assert steps(cut_of(graph, state), "torch.reshape") == [{"shape": (-1, 2, 2, 2, 2, 3)}]


# Normalisation.


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_layer_norm_keeps_its_length(kind: str) -> None:
    """Channel 1 goes, then the first that is left: one padding, which grows, and the weights of what is left come first."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.call("torch.permute", net.conv("conv1", net.x, 4, kernel_size=1), dims=(0, 2, 3, 1))
    x = net.linear("fc1", net.layer("norm", kind, x, normalized_shape=4), 3)
    graph, state = made(net, net.linear("fc2", net.call("torch.mean", x, dim=(1, 2)), 2))
    silence(state, "conv1", 1)
    ignore(state, "fc1", 1)
    first = cut_of(graph, state)
    targets = [step.target for step in first.graph.steps]
    assert targets == ["self.conv1", "torch.permute", "F.pad", "self.norm", "[:]", "self.fc1", "torch.mean", "self.fc2"]
    assert (steps(first, "F.pad"), steps(first, "[:]")) == ([{"pad": (0, 1)}], [{"dim": 3, "stop": 3}])
    assert first.graph.layer("norm") == graph.layer("norm")
    assert torch.equal(first.state["norm.weight"], state["norm.weight"][[0, 2, 3, 1]])
    again = {name: tensor.clone() for name, tensor in first.state.items()}
    silence(again, "conv1", 0)
    ignore(again, "fc1", 0)
    second = cut_of(first.graph, again)
    assert [step.target for step in second.graph.steps] == targets
    assert (steps(second, "F.pad"), steps(second, "[:]")) == ([{"pad": (0, 2)}], [{"dim": 3, "stop": 2}])
    assert torch.equal(second.state["norm.weight"], state["norm.weight"][[2, 3, 1, 0]])


def test_layer_norm_keeps_what_is_not_zero() -> None:
    """A constant that is not zero moves the mean."""
    net = Sketch("Toy", (3,))
    x = net.linear("fc2", net.layer_norm("norm", net.linear("fc1", net.x, 4)), 2)
    graph, state = made(net, x)
    state["fc1.weight"][1], state["fc1.bias"][1] = 0, 0.5
    ignore(state, "fc2", 1)
    assert cut_of(graph, state).graph == graph


def test_groups_of_a_group_norm_go_whole() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.layer("norm", "GroupNorm", net.conv("conv1", net.x, 6, kernel_size=1), num_groups=3, num_channels=6)
    graph, state = made(net, net.classifier("fc", x, 2))
    assert ids(graph, "norm", "features") == [0, 0, 1, 1, 2, 2]
    ignore(state, "fc", 0, 1, 2)  # 3 is read, so 2 stays
    cut = cut_of(graph, state)
    assert (cut.graph.layer("norm")["num_groups"], cut.graph.layer("norm")["num_channels"]) == (2, 4)


def test_prelu_multiplies_a_negative_constant() -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.layer("act", "PReLU", net.conv("conv1", net.x, 3, kernel_size=1), num_parameters=3)
    graph, state = made(net, net.classifier("fc", x, 2))
    state["conv1.weight"][2], state["conv1.bias"][2], state["act.weight"][2] = 0, -2.0, 0.25
    cut = cut_of(graph, state)
    assert cut.graph.layer("act")["num_parameters"] == 2
    assert torch.allclose(cut.state["fc.bias"], state["fc.bias"] - 0.5 * state["fc.weight"][:, 2], rtol=1e-12)
