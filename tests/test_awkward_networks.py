"""Networks at which cutting and gating once went wrong, or could: each the smallest of its kind, held to the contract."""

from collections.abc import Callable

import pytest
import torch
from byhand import cut_of, frozen, ignore, made, silence, steps, width
from graphs import Sketch
from networks import State, network

from prunetrain.channels.constants import find_constants
from prunetrain.channels.slices import measure_slices
from prunetrain.channels.slicing import Cut, slice_optimizer_state
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import LayerGraph, Value

# What many channels share learns from all of them, from constants too.


def masked(target: str) -> tuple[LayerGraph, State]:
    """Three channels, and one mask of the pixels for all."""
    net = Sketch("Toy", (3, 4, 4))
    x, mask = net.conv("conv1", net.x, 3, kernel_size=1), net.conv("mask", net.x, 1, kernel_size=1)
    return made(net, net.classifier("fc", net.conv("conv2", net.call(target, x, mask), 2, kernel_size=1), 2))


@pytest.mark.parametrize("target", ["*", "+", "-", "/", "torch.maximum", "torch.minimum"])
def test_constant_channel_stays_with_the_constant_mask(target: str) -> None:
    graph, state = masked(target)
    state["conv1.weight"][0] = 0
    state["mask.weight"].zero_()
    assert cut_of(graph, state).graph == graph


def test_mask_of_zeros_still_learns() -> None:
    graph, state = masked("*")
    state["mask.weight"].zero_()
    state["mask.bias"].zero_()
    ignore(state, "conv2", 2)
    assert width(cut_of(graph, state), "conv1") == [2]


def test_silent_channel_goes_whatever_its_mask_is() -> None:
    graph, state = masked("*")
    silence(state, "conv1", 1)
    assert width(cut_of(graph, state), "conv1") == [2]


def test_layer_norm_over_columns_is_shared_by_the_channels() -> None:
    net = Sketch("Toy", (3, 4, 1))
    x = net.layer_norm("norm", net.conv("conv1", net.x, 3, kernel_size=1))
    graph, state = made(net, net.classifier("fc", net.conv("conv2", x, 2, kernel_size=1), 2))
    state["conv1.weight"][1], state["norm.weight"][:] = 0, 0
    assert cut_of(graph, state).graph == graph


def test_layer_norm_over_channels_and_over_columns_stays_as_it_is() -> None:
    """Its weights must not be put in another order for the columns."""
    net = Sketch("Toy", (2, 3, 4))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    a = net.layer("norm", "LayerNorm", net.call("torch.permute", x, dims=(0, 2, 3, 1)), normalized_shape=4)
    b = net.layer("norm", "LayerNorm", net.conv("conv2", net.x, 2, kernel_size=1))
    graph, state = made(net, net.linear("fc", net.call("torch.mean", a, dim=(1, 2)), 2), net.classifier("other", b, 2))
    silence(state, "conv1", 0)
    ignore(state, "fc", 0)
    assert frozen(graph, "conv1") == "norm works on a dimension other than the channels"
    assert cut_of(graph, state).graph == graph


# Numbers that depend on how many there are.


def test_sum_over_the_images_is_no_constant() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    x = net.call("-", x, net.call("torch.sum", x, dim=0, keepdim=True))
    graph, state = made(net, net.classifier("fc", net.conv("conv2", x, 3, kernel_size=1), 2))
    state["conv1.weight"][1] = 0
    assert cut_of(graph, state).graph == graph


def test_squeeze_that_leaves_channels_alone_freezes_them() -> None:
    """It would not if a single one were left."""
    net = Sketch("Toy", (3, 4, 4))
    x = net.call("F.adaptive_avg_pool2d", net.conv("conv1", net.x, 3, kernel_size=1), output_size=1)
    graph, state = made(net, net.linear("fc", net.call("torch.squeeze", x, dim=(1, 2, 3)), 2))
    ignore(state, "fc", 1, 2)
    assert frozen(graph, "conv1") == "torch.squeeze depends on channel positions"
    assert cut_of(graph, state).graph == graph


@pytest.mark.parametrize(
    ("pad", "options", "paddings"), [((0, 1), {}, 1), ((1, 1), {}, 2), ((0, 1), {"value": 0.5}, 2), ((0, 1, 1, 0), {}, 2)]
)
def test_padding_of_the_network_is_not_taken_for_that_of_a_cut(pad: tuple[int, ...], options: dict[str, float], paddings: int) -> None:
    net = Sketch("Toy", (2, 3, 3))
    x = net.call("torch.permute", net.conv("conv1", net.x, 4, kernel_size=1), dims=(0, 2, 3, 1))
    x = net.linear("fc1", net.layer_norm("norm", net.call("F.pad", x, pad=pad, **options)), 3)
    graph, state = made(net, net.linear("fc2", net.call("torch.mean", x, dim=(1, 2)), 2))
    silence(state, "conv1", 1)
    ignore(state, "fc1", pad[0] + 1)
    cut = cut_of(graph, state)
    assert width(cut, "conv1") == [3]
    assert len(steps(cut, "F.pad")) == paddings


def test_layer_norm_of_a_declared_tensor() -> None:
    net = Sketch("Toy", (2, 3, 3))
    token = net.layer("norm", "LayerNorm", net.declare("token", (1, 1, 1, 4)), normalized_shape=4)
    x = net.call("+", net.call("torch.permute", net.conv("conv1", net.x, 4, kernel_size=1), dims=(0, 2, 3, 1)), token)
    graph, state = made(net, net.linear("fc", net.call("torch.mean", net.linear("mix", x, 3), dim=(1, 2)), 2))
    state["token"][..., 2] = 0
    ignore(state, "mix", 2)
    cut = cut_of(graph, state)
    assert (width(cut, "conv1"), steps(cut, "F.pad")) == ([3], [{"pad": (0, 1)}])


# Positions.


def test_index_that_two_steps_share() -> None:
    """Positions 3 1 0 of two convolutions: of one channel 0 goes, of the other 1."""
    net = Sketch("Toy", (3, 4, 4))
    index = net.index("positions", 3, 1, 0)
    parts = [net.call("torch.index_select", net.conv(name, net.x, 4, kernel_size=1), dim=1, index=index) for name in "abc"]
    graph, state = made(net, net.classifier("fc", net.cat(*parts), 2))
    ignore(state, "fc", 2, 4)
    cut = cut_of(graph, state)
    assert width(cut, "a", "b", "c") == [2, 2, 3]  # channel 2 is selected by none
    assert {tensor.values for tensor in cut.graph.declared} == {(1, 0), (2, 1, 0)}


def test_index_that_names_a_position_twice() -> None:
    """Channel 1 gets a constant and what is none."""
    net = Sketch("Toy", (3, 4, 4))
    x, part = net.conv("conv1", net.x, 4, kernel_size=1), net.conv("part", net.x, 3, kernel_size=1)
    x = net.call("torch.index_add", x, dim=1, index=net.index("writes", 1, 1, 2), source=part)
    graph, state = made(net, net.classifier("fc", x, 2))
    for dead in (0, 1):
        damaged = {name: tensor.clone() for name, tensor in state.items()}
        damaged["conv1.weight"][1], damaged["part.weight"][dead] = 0, 0
        assert cut_of(graph, damaged).graph == graph


def test_positions_as_numbers_freeze_what_they_meet() -> None:
    net = Sketch("Toy", (4,))
    x = net.call("*", net.linear("fc1", net.x, 3), net.index("numbers", 1, 2, 3))
    graph, state = made(net, net.linear("fc2", x, 2))
    ignore(state, "fc2", 1)
    assert frozen(graph, "fc1") == "* is not followed"
    assert cut_of(graph, state).graph == graph


# BatchNorm.


@pytest.mark.parametrize("tracked", [True, False])
def test_batch_norm_without_scale_or_without_statistics(tracked: bool) -> None:
    """What a dead filter makes is zero behind it, once the mean is known."""
    net = Sketch("Toy", (2, 3, 3))
    x = net.norm("bn1", net.conv("conv1", net.x, 3, kernel_size=1), affine=False, track_running_stats=tracked)
    graph = net.graph(net.classifier("fc", net.conv("conv2", x, 2, kernel_size=3, padding=1), 2))
    state = network(graph).state_dict()
    state["conv1.weight"][1] = 0
    if tracked:
        state["bn1.running_mean"][1] = state["conv1.bias"][1]
    constants = find_constants(graph, find_spaces(graph), state, slices := measure_slices(graph, state, 1e-4), 1e-4)
    assert slices["conv1"].dead.all(1).tolist() == [False, True, False]
    assert constants.consumers["conv2"].expendable.tolist() == [False, True, False]


# Gates.


def stream(joined: Callable[[Sketch, Value], Value]) -> tuple[LayerGraph, State]:
    """Two convolutions write to a stream of 4 channels, something reads it or adds to it, and a classifier reads all."""
    net = Sketch("Toy", (3, 4, 4))
    x = net.call("+", net.conv("conv1", net.x, 4, kernel_size=1), net.conv("conv2", net.x, 4, kernel_size=1))
    return made(net, net.call("+", net.classifier("fc", x, 2), net.classifier("head", joined(net, x), 2)))


def test_selection_of_rows_is_no_gate() -> None:
    def joined(net: Sketch, x: Value) -> Value:
        rows = net.call("torch.index_select", x, dim=2, index=net.index("rows", 3, 1, 0))
        return net.conv("conv3", rows, 2, kernel_size=1)

    graph, state = stream(joined)
    ignore(state, "conv3", 0)
    cut = cut_of(graph, state, gating=True)
    assert {tensor.name: tensor.values for tensor in cut.graph.declared} == {"rows": (3, 1, 0), "conv3_reads": (1, 2, 3)}


def test_gate_that_two_layers_read_stays_for_the_other() -> None:
    def joined(net: Sketch, x: Value) -> Value:
        index = net.index("positions", 3, 1, 0)
        parts = [net.call("torch.index_select", x, dim=1, index=index) for _ in range(2)]
        return net.call("+", net.conv("conv3", parts[0], 2, kernel_size=1), net.conv("conv4", parts[1], 2, kernel_size=1))

    graph, state = stream(joined)
    ignore(state, "conv3", 0)
    cut = cut_of(graph, state, gating=True)
    assert cut.graph.layer("conv3")["in_channels"] == 2
    assert cut.graph.layer("conv4")["in_channels"] == 3


@pytest.mark.parametrize("way", ["pooled", "declared", "number"])
def test_addition_of_other_shapes_is_no_gate(way: str) -> None:
    def joined(net: Sketch, x: Value) -> Value:
        if way == "pooled":
            pooled = net.call("F.adaptive_avg_pool2d", x, output_size=1)
            return net.call("+", x, net.conv("conv3", pooled, 4, kernel_size=1))
        other = net.declare("bias", (4, 1, 1)) if way == "declared" else 0.5
        return net.call("+", x, net.call("+", net.conv("conv3", x, 4, kernel_size=1), other))

    graph, state = stream(joined)
    state["conv3.weight"][1] = 0
    assert cut_of(graph, state, gating=True).graph == graph


def test_returned_convolution_and_returned_selection_stay() -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("conv1", net.x, 4, kernel_size=1)
    returned = net.conv("conv2", x, 4, kernel_size=1)
    x = net.call("+", x, net.norm("bn2", returned))
    part = net.call("torch.index_select", x, dim=1, index=net.index("positions", 3, 1, 0))
    graph, state = made(
        net, net.classifier("fc", x, 2), net.classifier("head", net.conv("conv3", part, 2, kernel_size=1), 2), returned, part
    )
    state["conv2.weight"][1], state["bn2.running_mean"][1] = 0, state["conv2.bias"][1]
    ignore(state, "conv3", 0)
    cut = cut_of(graph, state, gating=True)
    assert width(cut, "conv2") == [4]
    assert {tensor.name: tensor.values for tensor in cut.graph.declared} == {"positions": (3, 1, 0), "conv3_reads": (1, 2)}


def two_blocks() -> tuple[LayerGraph, State]:
    """A stream of 4 channels and two blocks of 7; bn4 ends the second. Running means are zero, so that constants agree."""
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv_bn_relu("0", net.x, 4, kernel_size=1)
    for first, last in ("12", "34"):
        y = net.conv_bn_relu(first, x, 7, kernel_size=1)
        x = net.call("F.relu", net.call("+", net.norm(f"bn{last}", net.conv(f"conv{last}", y, 4, kernel_size=1, bias=False)), x))
    graph, state = made(net, net.classifier("fc", x, 2))
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.zero_()
    return graph, state


def gated_twice() -> tuple[Cut, Cut]:
    """Filter 1 of conv4 is dead; then another, filter 2 of conv2, and an input of conv1, which moves all steps behind it."""
    graph, state = two_blocks()
    state["conv4.weight"][1] = 0
    first = cut_of(graph, state, gating=True)
    again = {name: tensor.clone() for name, tensor in first.state.items()}
    again["conv4.weight"][1], again["conv2.weight"][2] = 0, 0
    ignore(again, "conv1", 0)
    return first, cut_of(first.graph, again, gating=True)


def test_gates_after_gates() -> None:
    first, second = gated_twice()
    assert width(first, "conv2", "conv4") == [4, 3]
    assert width(second, "conv2", "conv4") == [3, 2]
    indices = {tensor.name: tensor.values for tensor in second.graph.declared if tensor.values}
    assert (indices["bn4_writes"], indices["bn2_writes"], indices["conv1_reads"]) == ((0, 3), (0, 1, 3), (1, 2, 3))


def test_gates_after_gates_run_under_autocast() -> None:
    """A declared bias makes the stream float32, the branch is bfloat16."""
    for cut in gated_twice():
        model = network(cut.graph, cut.state).float()
        with torch.autocast("cpu", torch.bfloat16):
            assert model(torch.ones(2, 3, 4, 4)).isfinite().all()


def test_two_parameters_from_one_count_their_own_steps() -> None:
    """A gate splits a bias in two; Adam counts in a tensor, in place."""
    graph, state = two_blocks()
    state["conv4.weight"][1] = 0
    cut = cut_of(graph, state, gating=True)
    model, smaller = network(graph, state), network(cut.graph, cut.state)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3, 4, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    names, shapes = [name for name, _ in smaller.named_parameters()], {name: tensor.shape for name, tensor in model.named_parameters()}
    sliced = slice_optimizer_state(optimizer.state_dict(), list(shapes), names, cut.sources, shapes)
    assert {cut.sources[name].name for name in ("bn4.bias", "bn4_rest")} == {"bn4.bias"}
    assert len({entries["step"].data_ptr() for entries in sliced["state"].values()}) == len(names)
