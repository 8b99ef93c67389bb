"""Residual branches that go whole: what stays of them, and when they stay."""

from dataclasses import replace

import pytest
import torch
from graphs import Sketch, residual
from networks import MAIN_OPTIMIZERS, State, assert_same_function, assert_same_step, network, new_state, zoo_graph

from prunetrain.channels import slicing
from prunetrain.channels.slicing import Cut, propose_cut
from prunetrain.channels.sources import Source, chain
from prunetrain.channels.spaces import ChannelSpaces, find_spaces
from prunetrain.graph.layergraph import Attribute, Declared, LayerGraph, Step, Value
from prunetrain.graph.shapes import check_shapes

THRESHOLD = 1e-4
BLOCK = ("layer1_0_conv1", "layer1_0_bn1", "layer1_0_conv2", "layer1_0_bn2")


def cut_of(graph: LayerGraph, state: State, criterion: str = "union") -> Cut:
    """The cut, after a check that nothing else changes; `union` leaves live channels alone."""
    proposal = propose_cut(graph, state, threshold=THRESHOLD, criterion=criterion)
    cut = proposal.apply(proposal.plan())
    assert_same_function(graph, state, cut)
    for optimizer in MAIN_OPTIMIZERS:
        assert_same_step(graph, state, cut, optimizer=optimizer, running_means=False)
    return cut


def dead_block(**batch_norm: float) -> tuple[LayerGraph, State]:
    """A network whose first block ends in a dead conv; its last BatchNorm's statistics and parameters as given, the mean zero otherwise."""
    graph = residual()
    state = new_state(graph, 0)
    state["layer1_0_conv2.weight"].zero_()
    for tensor, number in {"running_mean": 0, **batch_norm}.items():
        state[f"layer1_0_bn2.{tensor}"].fill_(number)
    return graph, state


def test_constant_stays_as_a_declared_bias() -> None:
    graph, state = dead_block()
    cut = cut_of(graph, state)
    assert cut.removed_layers == BLOCK
    assert cut.graph.declared == (Declared("layer1_0_bn2_bias", (8, 1, 1)),)
    assert torch.equal(cut.state["layer1_0_bn2_bias"].flatten(), state["layer1_0_bn2.bias"])
    assert cut.sources["layer1_0_bn2_bias"].name == "layer1_0_bn2.bias"
    assert [step.target for step in cut.graph.steps[:5]] == ["self.conv1", "self.bn1", "F.relu", "+", "F.relu"]
    assert cut.graph.steps[3] == Step.make("+", input=Value(3), other=Attribute("layer1_0_bn2_bias"))


def test_the_bias_of_a_layer_that_is_not_trained_leaves_a_buffer() -> None:
    graph, state = dead_block()
    frozen = replace(graph, layers=tuple(replace(layer, trainable=layer.name != "layer1_0_bn2") for layer in graph.layers))
    assert cut_of(frozen, state).graph.declared == (Declared("layer1_0_bn2_bias", (8, 1, 1), "buffer"),)


def test_zero_leaves_nothing() -> None:
    graph, state = dead_block(bias=0)
    cut = cut_of(graph, state)
    assert cut.removed_layers == BLOCK
    assert cut.graph.declared == ()
    assert [step.target for step in cut.graph.steps[:4]] == ["self.conv1", "self.bn1", "F.relu", "F.relu"]


@pytest.mark.parametrize(("mean", "goes"), [(1.0, False), (-0.01, False), (9e-5, True), (1.1e-4, False)])
def test_branch_stays_while_the_modes_disagree(mean: float, goes: bool) -> None:
    """With the scale 1 the constants of the two modes are `mean` apart."""
    graph, state = dead_block(weight=1, running_mean=mean, running_var=1 - 1e-5)
    proposal = propose_cut(graph, state, threshold=THRESHOLD, criterion="union")
    assert proposal.removed_layers == (BLOCK if goes else ())
    cut = proposal.apply(proposal.plan())
    assert_same_function(graph, state, cut)
    if not goes:
        assert cut.graph == graph


@pytest.mark.parametrize(("sign", "goes"), [(-1, True), (1, False)])
def test_dead_first_layer(sign: int, goes: bool) -> None:
    """ReLU makes zeros of negative constants; positive ones do not survive the second conv's padding."""
    graph = residual()
    state = new_state(graph, 0)
    state["layer1_0_conv1.weight"].zero_()
    state["layer1_0_bn1.bias"] = sign * state["layer1_0_bn1.bias"].abs()
    state["layer1_0_bn1.running_mean"].zero_()
    state["layer1_0_bn2.running_mean"].zero_()
    assert cut_of(graph, state).removed_layers == (BLOCK if goes else ())


def test_dead_layer_in_the_middle_of_a_bottleneck() -> None:
    """The constants of conv2 pass through conv3, which is alive and not padded; what is left is that of bn3."""
    net = Sketch("Toy", (3, 6, 6))
    stem = net.conv_bn_relu("0", net.x, 4, kernel_size=3, padding=1)
    x = net.conv_bn_relu("1", stem, 2, kernel_size=1)
    x = net.conv_bn_relu("2", x, 2, kernel_size=3, padding=1)
    x = net.norm("bn3", net.conv("conv3", x, 4, kernel_size=1, bias=False))
    graph = net.graph(net.classifier("fc", net.call("+", x, stem), 3))
    state = new_state(graph, 0)
    state["conv2.weight"].zero_()
    state["bn2.running_mean"].zero_()
    state["bn3.running_mean"] = state["conv3.weight"].flatten(1) @ state["bn2.bias"].relu()
    cut = cut_of(graph, state)
    assert cut.removed_layers == ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
    assert torch.allclose(cut.state["bn3_bias"].flatten(), state["bn3.bias"], rtol=1e-12)


@pytest.mark.parametrize("sides", [("conv2",), ("downsample_0",), ("conv2", "downsample_0")])
def test_projection(sides: tuple[str, ...]) -> None:
    """Of two dead sides one goes: an addition needs an operand."""
    graph = residual()
    state = new_state(graph, 0)
    for conv in sides:
        state[f"layer2_0_{conv}.weight"].zero_()
        state[f"layer2_0_{conv.replace('conv', 'bn').replace('downsample_0', 'downsample_1')}.running_mean"].zero_()
    cut = cut_of(graph, state)
    projection = ("layer2_0_downsample_0", "layer2_0_downsample_1")
    assert cut.removed_layers == (projection if "downsample_0" in sides else tuple(name.replace("1_0", "2_0") for name in BLOCK))
    assert len(cut.graph.declared) == 1


def test_several_branches_at_once() -> None:
    graph = residual()
    state = new_state(graph, 0)
    for layer in ("layer1_0", "layer2_0"):
        state[f"{layer}_conv2.weight"].zero_()
        state[f"{layer}_bn2.running_mean"].zero_()
    state["layer1_0_bn2.bias"].zero_()
    cut = cut_of(graph, state)
    assert cut.removed_layers == BLOCK + tuple(name.replace("1_0", "2_0") for name in BLOCK)
    assert [tensor.name for tensor in cut.graph.declared] == ["layer2_0_bn2_bias"]


def test_many_branches_take_two_looks_at_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Sketch("Toy", (2, 4, 4))
    x = net.conv_bn_relu("stem_:1", net.x, 3, kernel_size=1)
    for number in range(6):
        x = net.call("+", x, net.norm(f"bn{number}", net.conv(f"conv{number}", x, 3, kernel_size=1, bias=False)))
    graph = net.graph(net.classifier("fc", x, 2))
    state = new_state(graph, 0)
    for number in range(6):
        state[f"conv{number}.weight"].zero_()
        state[f"bn{number}.running_mean"].zero_()
        if number % 2:
            state[f"bn{number}.bias"].zero_()
    looks: list[LayerGraph] = []

    def counted(graph: LayerGraph) -> ChannelSpaces:
        looks.append(graph)
        return find_spaces(graph)

    monkeypatch.setattr(slicing, "find_spaces", counted)
    cut = cut_of(graph, state)
    assert [layer.name for layer in cut.graph.layers] == ["stem_conv1", "stem_bn1", "fc"]
    assert [tensor.name for tensor in cut.graph.declared] == ["bn0_bias", "bn2_bias", "bn4_bias"]
    assert len(looks) == 2


def test_branch_inside_a_branch_that_goes() -> None:
    """The inner one leaves a bias, the outer one takes it along and leaves its own."""
    net = Sketch("Toy", (2, 4, 4))
    x = net.conv_bn_relu("stem_:1", net.x, 3, kernel_size=1)
    y = net.call("F.relu", net.conv("outer1", x, 3, kernel_size=1))
    y = net.call("+", y, net.conv("inner", y, 3, kernel_size=1))
    graph = net.graph(net.classifier("fc", net.call("+", x, net.conv("outer2", y, 3, kernel_size=1)), 2))
    state = new_state(graph, 0)
    for name in ("inner", "outer2"):
        state[f"{name}.weight"].zero_()
    cut = cut_of(graph, state)
    assert cut.removed_layers == ("outer1", "inner", "outer2")
    assert [tensor.name for tensor in cut.graph.declared] == ["outer2_bias"]
    assert torch.equal(cut.state["outer2_bias"].flatten(), state["outer2.bias"])


def test_constant_that_is_read_many_times_over() -> None:
    """A walk that came to each reader's sources anew would take 2 ** 40 steps."""
    net = Sketch("Toy", (2, 4, 4))
    x = net.conv_bn_relu("stem_:1", net.x, 3, kernel_size=1)
    y = net.conv("branch", x, 3, kernel_size=1, bias=False)
    for _ in range(40):
        y = net.call("+", y, y)
    graph = net.graph(net.classifier("fc", net.call("+", x, y), 2))
    state = new_state(graph, 0)
    state["branch.weight"].zero_()
    cut = cut_of(graph, state)
    assert cut.removed_layers == ("branch",)
    assert len(cut.graph.steps) == len(graph.steps) - 42


@pytest.mark.parametrize("criterion", ["union", "either"])
def test_all_branches_of_a_network(criterion: str) -> None:
    graph = zoo_graph("resnet20", width=6)
    state = new_state(graph, 0)
    for name, tensor in state.items():
        if name.endswith("conv2.weight"):
            tensor.zero_()
            state[name.replace("conv2.weight", "bn2.running_mean")].zero_()
    cut = cut_of(graph, state, criterion)
    assert [layer.name for layer in cut.graph.layers if layer.kind == "Conv2d"] == [
        "conv1",
        "layer2_0_downsample_0",
        "layer3_0_downsample_0",
    ]
    assert len(cut.graph.declared) == 9


def test_second_cut_of_what_was_cut_before() -> None:
    """A declared bias is cut like any other tensor, and its source is the one it has in the network of the moment."""
    graph, state = dead_block()
    state["conv1.weight"][2] = 0
    state["layer1_0_bn2.bias"][2] = 9
    first = cut_of(graph, state)
    second = cut_of(first.graph, first.state, "either")
    assert second.graph == first.graph  # its bias is not zero, and padded convs read it
    zero = dict(first.state)
    zero["layer1_0_bn2_bias"] = zero["layer1_0_bn2_bias"].index_fill(0, torch.tensor([2]), -9.0)
    zero["bn1.running_mean"] = zero["bn1.running_mean"].index_fill(0, torch.tensor([2]), 0.0)
    third = cut_of(first.graph, zero, "either")
    assert third.graph.declared == (Declared("layer1_0_bn2_bias", (7, 1, 1)),)
    assert torch.equal(third.state["layer1_0_bn2_bias"], zero["layer1_0_bn2_bias"][[0, 1, 3, 4, 5, 6, 7]])


def test_channels_of_what_a_branch_leaves_are_cut_in_the_same_go() -> None:
    graph, state = dead_block()
    state["conv1.weight"][2] = 0
    state["bn1.running_mean"][2] = 0
    state["layer1_0_bn2.bias"][2] = -9
    cut = cut_of(graph, state, "either")
    assert cut.graph.declared == (Declared("layer1_0_bn2_bias", (7, 1, 1)),)
    assert torch.equal(cut.state["layer1_0_bn2_bias"].flatten(), state["layer1_0_bn2.bias"][[0, 1, 3, 4, 5, 6, 7]])


def two_addends(*, padded: bool = False) -> tuple[Sketch, Value, Value]:
    net = Sketch("Toy", (3, 6, 6))
    x = net.conv("conv1", net.x, 4, kernel_size=3, padding=int(padded))
    return net, x, net.conv("conv2", net.x, 4, kernel_size=3, padding=int(padded))


def test_conv_with_a_bias_leaves_this_bias() -> None:
    net, a, b = two_addends()
    graph = net.graph(net.classifier("fc", net.call("F.relu", net.call("+", a, b)), 3))
    state = new_state(graph, 0)
    state["conv2.weight"].zero_()
    cut = cut_of(graph, state)
    assert cut.removed_layers == ("conv2",)
    assert torch.equal(cut.state["conv2_bias"].flatten(), state["conv2.bias"])


def test_features_leave_a_vector() -> None:
    net = Sketch("Toy", (5,))
    graph = net.graph(net.call("+", net.linear("fc1", net.x, 3), net.linear("fc2", net.x, 3)))
    state = new_state(graph, 0)
    state["fc1.weight"].zero_()
    assert cut_of(graph, state).graph.declared == (Declared("fc1_bias", (3,)),)


def test_name_that_is_taken() -> None:
    net, a, b = two_addends()
    x = net.call("+", net.call("+", a, b), net.declare("conv2_bias", (4, 1, 1)))
    graph = net.graph(net.classifier("fc", x, 3))
    state = new_state(graph, 0)
    state["conv2.weight"].zero_()
    assert {tensor.name for tensor in cut_of(graph, state).graph.declared} == {"conv2_bias", "conv2_bias_2"}


def test_constant_that_is_read_twice_stays() -> None:
    net, a, b = two_addends()
    x = net.call("*", net.call("+", a, b), b)
    graph = net.graph(net.classifier("fc", x, 3))
    state = new_state(graph, 0)
    state["conv2.weight"].zero_()
    assert cut_of(graph, state).removed_layers == ()
    state["conv2.bias"].zero_()  # without a bias as without one: conv2 stays and learns from both
    assert cut_of(graph, state).removed_layers == ()


def test_doubled_constant_stays() -> None:
    net, a, _ = two_addends()
    graph = LayerGraph("Toy", (3, 6, 6), (net.layers["conv1"],), (net.steps[0], Step.make("+", input=a, other=a)), Value(2))
    state = new_state(graph, 0)
    state["conv1.weight"].zero_()
    assert cut_of(graph, state).graph == graph


def test_constant_without_a_bias_behind_it_stays() -> None:
    net, a, b = two_addends()
    graph = net.graph(net.classifier("fc", net.call("+", a, net.call("torch.sigmoid", b)), 3))
    state = new_state(graph, 0)
    state["conv2.weight"].zero_()
    assert cut_of(graph, state).removed_layers == ()


def test_branch_whose_removal_would_change_the_shape_stays() -> None:
    net = Sketch("Toy", (3, 6, 6))
    pooled = net.call("F.adaptive_avg_pool2d", net.conv("conv1", net.x, 4, kernel_size=1), output_size=1)
    x = net.call("+", pooled, net.conv("conv2", net.x, 4, kernel_size=1))
    graph = net.graph(net.call("torch.flatten", x, start_dim=1))
    state = new_state(graph, 0)
    state["conv2.weight"].zero_()
    assert cut_of(graph, state).removed_layers == ()


@pytest.mark.parametrize("bias", [True, False])
def test_branch_that_alone_has_a_row_an_image_stays(bias: bool) -> None:
    net = Sketch("Toy", (3, 6, 6))
    positions = net.call("F.interpolate", net.declare("positions", (1, 4, 3, 3)), size=(6, 6), mode="bilinear")
    x = net.call("+", net.conv("conv1", net.x, 4, kernel_size=3, padding=1, bias=bias), positions)
    graph = net.graph(net.classifier("fc", net.call("F.relu", net.conv("conv2", x, 5, kernel_size=3)), 3))
    state = new_state(graph, 0)
    state["conv1.weight"].zero_()
    cut = cut_of(graph, state, "either")
    assert cut.removed_layers == ()
    check_shapes(cut.graph)


def test_branch_without_a_row_an_image_goes() -> None:
    net = Sketch("Toy", (3, 6, 6))
    positions = net.call("F.interpolate", net.declare("positions", (1, 2, 3, 3)), size=(6, 6), mode="bilinear")
    x = net.call("+", net.conv("conv1", net.x, 4, kernel_size=3, padding=1), net.conv("conv2", positions, 4, kernel_size=1))
    graph = net.graph(net.classifier("fc", net.call("F.relu", x), 3))
    state = new_state(graph, 0)
    state["conv2.weight"].zero_()
    cut = cut_of(graph, state)
    assert cut.removed_layers == ("conv2",)
    assert cut.graph.declared == (Declared("conv2_bias", (4, 1, 1)),)
    check_shapes(cut.graph)


def test_branch_that_others_learn_from_stays() -> None:
    """conv2 makes constants of the stem's constants: in training the stem's dead filters feel what the branch is used for."""
    net = Sketch("Toy", (3, 6, 6))
    stem = net.conv("conv1", net.x, 4, kernel_size=1)
    x = net.norm("bn2", net.conv("conv2", stem, 4, kernel_size=1, bias=False))
    graph = net.graph(net.classifier("fc", net.call("+", x, net.conv("conv3", stem, 4, kernel_size=3, padding=1)), 3))
    state = new_state(graph, 0)
    state["conv1.weight"].zero_()
    state["bn2.running_mean"] = state["conv2.weight"].flatten(1) @ state["conv1.bias"]
    # conv3 is padded: its outputs are not constant, and it needs conv1's constants.
    assert cut_of(graph, state).removed_layers == ()


def test_sources_of_sources() -> None:
    rows = {0: torch.tensor([1, 2])}
    inner = {"bias": Source("bn.bias", shape=(4, 1, 1)), "w": Source("w")}
    outer = {"bias": Source("bias", rows), "w": Source("w", shape=(2, 2))}
    assert chain(outer, inner) == {"bias": Source("bn.bias", rows, (4, 1, 1)), "w": Source("w", {}, (2, 2))}
    assert chain(outer, inner)["bias"].gather(torch.arange(4)).shape == (2, 1, 1)


def test_network_file_of_a_cut_branch_loads_its_weights() -> None:
    graph, state = dead_block()
    cut = cut_of(graph, state)
    loaded = network(cut.graph, cut.state).state_dict()
    assert set(loaded) == set(cut.state)
    assert torch.equal(loaded["layer1_0_bn2_bias"], cut.state["layer1_0_bn2_bias"])
