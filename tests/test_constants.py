"""Constants and who absorbs them: numbers worked out by hand, and what a network really computes."""

import random
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from graphs import Sketch, layer_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import DAMAGES, State, images_for, in_train_mode, network, new_state, settle_
from torch import Tensor
from torch.nn import functional as F

from prunetrain.channels.constants import Abstract, Constants, Consumer, Receiver, find_constants
from prunetrain.channels.slices import measure_slices
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import TRAINING, LayerGraph, Value
from prunetrain.graph.shapes import infer_shapes

THRESHOLD = 1e-4


def constants_of(graph: LayerGraph, state: State, always_eval: Collection[str] = ()) -> Constants:
    slices = measure_slices(graph, state, THRESHOLD)
    return find_constants(graph, find_spaces(graph), state, slices, THRESHOLD, always_eval=always_eval)


def double(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def set_batch_norm_(state: State, name: str, *, weight: list[float], bias: list[float], mean: list[float], std: list[float]) -> None:
    """Statistics such that the scale in eval mode is weight / std."""
    for tensor, numbers in (("weight", weight), ("bias", bias), ("running_mean", mean)):
        state[f"{name}.{tensor}"] = double(*numbers)
    state[f"{name}.running_var"] = double(*std) ** 2 - 1e-5


def assert_constant(found: Abstract, in_eval: list[float | None], in_train: list[float | None]) -> None:
    """None where nothing is known."""
    found = found.broadcast().map(torch.flatten)
    assert found.known.tolist() == [number is not None for number in in_eval]
    for numbers, expected in ((found.eval_mode, in_eval), (found.train_mode, in_train)):
        wanted = [number for number in expected if number is not None]
        assert numbers[found.known].tolist() == pytest.approx(wanted, abs=1e-12)


def image_of_constants(*numbers: float) -> tuple[Sketch, Value, State]:
    """A network that begins with a dead conv with these biases: a 4x4 image of constants, and its weights so far."""
    net = Sketch("Toy", (1, 4, 4))
    x = net.conv("conv1", net.x, len(numbers), kernel_size=1)
    return net, x, {"conv1.weight": torch.zeros(len(numbers), 1, 1, 1, dtype=torch.float64), "conv1.bias": double(*numbers)}


def after(target: str, *numbers: float, **arguments: Any) -> Abstract:
    """What a function makes of constants."""
    net, x, state = image_of_constants(*numbers)
    return constants_of(net.graph(net.call(target, x, **arguments)), state).values[-1]


def test_from_a_dead_filter_to_the_logits() -> None:
    net = Sketch("Toy", (1, 4, 4))
    x = net.conv("conv1", net.x, 3, kernel_size=1, bias=False)
    x = net.call("F.relu", net.norm("bn1", x))
    x = net.call("F.max_pool2d", x, kernel_size=2)
    x = net.call("+", x, net.declare("bias", (3, 1, 1)))
    x = net.call("torch.flatten", x, start_dim=1)  # 3 channels of 2x2
    graph = net.graph(net.linear("fc", x, 3))
    state = new_state(graph, 0)
    state["conv1.weight"] = double(0, 0, 5).view(3, 1, 1, 1)
    set_batch_norm_(state, "bn1", weight=[2, -1, 1], bias=[0.5, 0.25, 0], mean=[1, 0.5, 0], std=[2, 2, 1])
    state["bias"] = double(1, 2, 3).view(3, 1, 1)
    state["fc.weight"] = double([1] * 8 + [0] * 4, [2] + [0] * 11, [0] * 11 + [1])
    state["fc.bias"] = double(0, 1, 2)
    found = constants_of(graph, state)
    in_eval = [
        [None],
        [0, 0, None],  # conv1
        [-0.5, 0.5, None],  # bn1: 0.5 + (0 - 1) * 2 / 2, 0.25 + (0 - 0.5) * (-1) / 2
        [0, 0.5, None],  # relu
        [0, 0.5, None],  # pooling
        [1, 2.5, None],  # + bias
        [1] * 4 + [2.5] * 4 + [None] * 4,  # flatten
        [14, 3, None],  # fc: 4 * 1 + 4 * 2.5, 2 * 1 + 1
    ]
    in_train = [
        [None],
        [0, 0, None],
        [0.5, 0.25, None],  # the bias alone
        [0.5, 0.25, None],
        [0.5, 0.25, None],
        [1.5, 2.25, None],
        [1.5] * 4 + [2.25] * 4 + [None] * 4,
        [15, 4, None],
    ]
    for value, expected_in_eval, expected_in_train in zip(found.values, in_eval, in_train, strict=True):
        assert_constant(value, expected_in_eval, expected_in_train)
    # The two modes disagree: fc cannot take the constants over, and does without the columns that are zero only.
    assert found.consumers["fc"].expendable.tolist() == [False] * 8 + [True] * 3 + [False]
    assert not found.consumers["fc"].constants.any()


def test_bias_takes_over_what_both_modes_agree_on() -> None:
    net, x, state = image_of_constants(2, 0, -1)
    x = net.linear("fc", net.call("torch.flatten", net.call("F.adaptive_avg_pool2d", x, output_size=1), start_dim=1), 2)
    state |= {"fc.weight": double([1, 2, 3], [4, 5, 6]), "fc.bias": double(0.5, 0)}
    consumer = constants_of(net.graph(x), state).consumers["fc"]
    assert consumer.receiver is Receiver.BIAS
    assert consumer.receives == "fc.bias"
    assert consumer.expendable.all()
    assert consumer.columns.tolist() == [0, 2]  # the zero needs no taking over
    assert consumer.constants.tolist() == [2, -1]
    assert consumer.shift(state["fc.weight"], torch.tensor([True, True, True])).tolist() == [2 - 3, 8 - 6]
    assert consumer.shift(state["fc.weight"], torch.tensor([False, True, True])).tolist() == [-3, -6]


def test_running_mean_takes_over_what_the_modes_disagree_on() -> None:
    net = Sketch("Toy", (1, 4, 4))
    x = net.norm("bn1", net.conv("conv1", net.x, 2, kernel_size=1, bias=False))
    graph = net.graph(net.norm("bn2", net.conv("conv2", x, 1, kernel_size=(1, 2))))
    state = new_state(graph, 0)
    state["conv1.weight"].zero_()
    set_batch_norm_(state, "bn1", weight=[1, 1], bias=[3, 5], mean=[1, 0], std=[1, 1])
    state["conv2.weight"] = double([[[10, 1]], [[0, 100]]]).view(1, 2, 1, 2)
    consumer = constants_of(graph, state).consumers["conv2"]
    assert (consumer.receiver, consumer.receives) == (Receiver.RUNNING_MEAN, "bn2.running_mean")
    assert consumer.expendable.all()
    assert consumer.shift(state["conv2.weight"], torch.tensor([True, False])).tolist() == [pytest.approx(11 * (3 - 1))]
    assert consumer.shift(state["conv2.weight"], torch.tensor([False, True])).tolist() == [pytest.approx(100 * 5)]


@pytest.mark.parametrize(
    ("padding", "arguments", "survives"),
    [
        (1, {"kernel_size": 3}, False),
        (1, {"kernel_size": 1}, False),
        ((0, 1), {"kernel_size": 3}, False),
        ("same", {"kernel_size": 3}, False),
        ("same", {"kernel_size": (1, 3)}, False),
        ("same", {"kernel_size": 1}, True),
        ("valid", {"kernel_size": 3}, True),
        (0, {"kernel_size": 3, "stride": 2, "dilation": 1}, True),
        ((0, 0), {"kernel_size": 3}, True),
        (1, {"kernel_size": 3, "padding_mode": "reflect"}, True),
        (2, {"kernel_size": 3, "padding_mode": "circular"}, True),
        (1, {"kernel_size": 3, "padding_mode": "replicate"}, True),
    ],
)
def test_zero_padding_destroys_all_but_zero(padding: Any, arguments: dict[str, Any], survives: bool) -> None:
    net, x, state = image_of_constants(0, 0.7)
    graph = net.graph(net.norm("bn", net.conv("conv2", x, 3, padding=padding, bias=False, **arguments)))
    state = new_state(graph, 0) | state
    state["conv2.weight"][0, 1] = 0
    state["conv2.weight"][1, 0] = 0
    found = constants_of(graph, state)
    sums = 0.7 * state["conv2.weight"][:, 1].sum((1, 2))
    expected = [0, *sums[1:].tolist()] if survives else [0, None, None]
    assert_constant(found.values[2], expected, expected)
    assert found.consumers["conv2"].expendable.tolist() == [True, survives]


@pytest.mark.parametrize(("bias", "mean"), [(1.0, 2.0), (-1.0, -2.0)])
def test_zero_in_one_mode_only_is_no_zero(bias: float, mean: float) -> None:
    """ReLU makes zero of -1 and leaves 1; which is which depends on the mode."""
    net = Sketch("Toy", (1, 4, 4))
    x = net.call("F.relu", net.norm("bn1", net.conv("conv1", net.x, 1, kernel_size=1, bias=False)))
    graph = net.graph(net.norm("bn2", net.conv("conv2", x, 2, kernel_size=3, padding=1)))
    state = new_state(graph, 0)
    state["conv1.weight"].zero_()
    set_batch_norm_(state, "bn1", weight=[1], bias=[bias], mean=[mean], std=[1])
    found = constants_of(graph, state)
    assert_constant(found.values[3], [max(0, bias - mean)], [max(0, bias)])
    assert_constant(found.values[4], [None, None], [None, None])
    assert found.consumers["conv2"].expendable.tolist() == [False]


@pytest.mark.parametrize("training", [TRAINING, True, False])
def test_dropout_keeps_only_zero(training: Any) -> None:
    assert_constant(after("F.dropout", 0, 1, p=0.5, training=training), [0, None], [0, None])


def test_pooling() -> None:
    for target, arguments in (
        ("F.max_pool2d", {"kernel_size": 3, "padding": 1, "ceil_mode": True}),
        ("F.avg_pool2d", {"kernel_size": 2}),
        ("F.avg_pool2d", {"kernel_size": (1, 3), "stride": 1}),
        ("F.adaptive_avg_pool2d", {"output_size": (3, 1)}),
    ):
        assert_constant(after(target, 0, -2, **arguments), [0, -2], [0, -2])


@pytest.mark.parametrize("arguments", [{"padding": 1}, {"padding": (0, 1)}, {"ceil_mode": True}, {"divisor_override": 2}])
def test_average_with_padding_destroys_all_but_zero(arguments: dict[str, Any]) -> None:
    assert_constant(after("F.avg_pool2d", 0, 1, kernel_size=2, **arguments), [0, None], [0, None])


def test_activations_have_their_arguments() -> None:
    for target, arguments, expected in (
        ("F.relu6", {}, [0, 6]),
        ("F.leaky_relu", {"negative_slope": 0.5}, [-1, 8]),
        ("torch.sigmoid", {}, torch.sigmoid(double(-2, 8)).tolist()),
        ("F.elu", {"alpha": 2.0}, F.elu(double(-2, 8), alpha=2.0).tolist()),
        ("F.gelu", {"approximate": "tanh"}, F.gelu(double(-2, 8), approximate="tanh").tolist()),
    ):
        assert_constant(after(target, -2, 8, **arguments), expected, expected)


def test_batch_norm_without_parameters_or_statistics() -> None:
    net, x, state = image_of_constants(3, 5)
    x = net.norm("plain", x, affine=False)
    graph = net.graph(net.norm("untracked", x, track_running_stats=False))
    state |= {"plain.running_mean": double(1, 5), "plain.running_var": double(4, 4) - 1e-5}
    state |= {"untracked.weight": double(1, 1), "untracked.bias": double(7, 8)}
    found = constants_of(graph, state)
    assert_constant(found.values[2], [1, 0], [0, 0])  # (3 - 1) / 2
    assert_constant(found.values[3], [7, 8], [7, 8])


def norm_on_norm() -> tuple[LayerGraph, State]:
    """A dead conv, bn1 that makes (1, 5) of it in eval mode and (3, 5) in train mode, bn2 behind bn1; a live conv and its BatchNorm."""
    net = Sketch("Toy", (1, 4, 4))
    x = net.norm("bn2", net.norm("bn1", net.conv("conv1", net.x, 2, kernel_size=1, bias=False)))
    graph = net.graph(net.norm("bn3", net.conv("conv2", x, 1, kernel_size=1)))
    state = new_state(graph, 0)
    state["conv1.weight"].zero_()
    set_batch_norm_(state, "bn1", weight=[1, 1], bias=[3, 5], mean=[2, 0], std=[1, 1])
    set_batch_norm_(state, "bn2", weight=[1, 4], bias=[7, 7], mean=[1, 5], std=[1, 2])
    return graph, state


@pytest.mark.parametrize(
    ("always_eval", "after_bn1", "after_bn2"),
    [
        ([], ([1, 5], [3, 5]), ([7, 7], [7, 7])),
        (["bn1"], ([1, 5], [1, 5]), ([7, 7], [7, 7])),
        (["bn2"], ([1, 5], [3, 5]), ([7, 7], [9, 7])),
        (["bn1", "bn2"], ([1, 5], [1, 5]), ([7, 7], [7, 7])),
    ],
)
def test_batch_norm_that_stays_in_eval_mode(always_eval: list[str], after_bn1: Any, after_bn2: Any) -> None:
    graph, state = norm_on_norm()
    found = constants_of(graph, state, always_eval)
    assert_constant(found.values[2], *after_bn1)
    assert_constant(found.values[3], *after_bn2)


@pytest.mark.parametrize(("always_eval", "absorbed"), [(["bn2"], [True, True]), (["bn3"], [True, True]), (["bn2", "bn3"], [False, True])])
def test_running_mean_that_train_mode_uses_takes_over_what_the_modes_agree_on(always_eval: list[str], absorbed: list[bool]) -> None:
    consumer = constants_of(*norm_on_norm(), always_eval).consumers["conv2"]
    assert consumer.receives == "bn3.running_mean"
    assert consumer.expendable.tolist() == absorbed
    assert consumer.constants.tolist() == [7 * absorbed[0], 7]


def test_addition_needs_both_operands_and_zero_wins_every_multiplication() -> None:
    net = Sketch("Toy", (1, 4, 4))
    a, b = net.conv("a", net.x, 4, kernel_size=1), net.conv("b", net.x, 4, kernel_size=1)
    total, product = net.call("+", a, b), net.call("*", a, b)
    graph = net.graph(net.call("+", net.call("F.relu", total), net.call("F.relu", product)))
    state = new_state(graph, 0)
    state["a.weight"][[0, 1, 2]], state["a.bias"] = 0, double(2, 0, 3, 9)
    state["b.weight"][[0]], state["b.bias"] = 0, double(5, 9, 9, 9)
    found = constants_of(graph, state)
    assert_constant(found.values[total.index], [7, None, None, None], [7, None, None, None])
    assert_constant(found.values[product.index], [10, 0, None, None], [10, 0, None, None])


def test_a_constant_mask_learns_from_each_channel_it_is_added_to() -> None:
    """So none of them may count as a constant that something absorbs."""
    net, x, state = image_of_constants(1, 2)
    mask = net.conv("mask", net.x, 1, kernel_size=1)
    state |= {"mask.weight": torch.zeros(1, 1, 1, 1, dtype=torch.float64), "mask.bias": double(3)}
    found = constants_of(net.graph(net.call("+", x, mask)), state).values[-1]
    assert_constant(found.along(1, 2), [None] * 2, [None] * 2)


def test_declared_tensor_that_differs_between_pixels_is_no_constant() -> None:
    net, x, state = image_of_constants(1, 2)
    state["bias"] = torch.arange(32, dtype=torch.float64).view(2, 4, 4)
    found = constants_of(net.graph(net.call("+", x, net.declare("bias", (2, 4, 4)))), state).values[-1]
    assert found.known.all()
    assert_constant(found.along(1, 2), [None] * 2, [None] * 2)


def test_true_and_true_are_not_two() -> None:
    net, x, state = image_of_constants(3, 3, 3)
    either = net.call("+", net.declare("first", (3, 1, 1), "buffer", "bool"), net.declare("second", (3, 1, 1), "buffer", "bool"))
    state |= {"first": torch.tensor([1, 1, 0]).bool().view(3, 1, 1), "second": torch.tensor([1, 0, 0]).bool().view(3, 1, 1)}
    found = constants_of(net.graph(net.call("*", x, either)), state).values[-1]
    assert_constant(found, [None, None, 0], [None, None, 0])


@pytest.mark.parametrize("padding", [0, 1])
def test_depthwise_conv(padding: int) -> None:
    net, x, state = image_of_constants(0, 2, 3)
    graph = net.graph(net.conv("depthwise", x, 6, kernel_size=3, padding=padding, groups=3))
    state["depthwise.weight"] = double(1, 2, 3, 4, 0, 6).view(6, 1, 1, 1).expand(6, 1, 3, 3)
    state["depthwise.bias"] = double(10, 20, 30, 40, 50, 60)
    lost = None if padding else 0
    expected = [10, 20, lost if padding else 30 + 2 * 27, lost if padding else 40 + 2 * 36, 50, lost if padding else 60 + 3 * 54]
    assert_constant(constants_of(graph, state).values[-1], expected, expected)


def test_dead_depthwise_filter_is_a_constant_whatever_it_reads() -> None:
    net = Sketch("Toy", (2, 4, 4))
    graph = net.graph(net.conv("depthwise", net.x, 2, kernel_size=3, padding=1, groups=2))
    state = new_state(graph, 0)
    state["depthwise.weight"][0] = 0
    assert_constant(
        constants_of(graph, state).values[-1], [state["depthwise.bias"][0].item(), None], [state["depthwise.bias"][0].item(), None]
    )


def consumer_of(net: Sketch, output: Value, name: str = "conv2") -> Consumer:
    graph = net.graph(output)
    return constants_of(graph, new_state(graph, 0)).consumers[name]


@pytest.mark.parametrize("bias", [True, False])
def test_who_receives_without_a_batch_norm_behind(bias: bool) -> None:
    net, x, _ = image_of_constants(1)
    consumer = consumer_of(net, net.call("F.relu", net.conv("conv2", x, 2, kernel_size=1, bias=bias)))
    assert (consumer.receiver, consumer.receives) == ((Receiver.BIAS, "conv2.bias") if bias else (Receiver.NONE, ""))


def test_nobody_receives_for_a_batch_norm_without_statistics() -> None:
    net, x, _ = image_of_constants(1)
    x = net.conv("conv2", x, 2, kernel_size=1, bias=False)
    assert consumer_of(net, net.norm("bn", x, track_running_stats=False)).receiver is Receiver.NONE


def test_batch_norm_receives_only_what_it_alone_reads() -> None:
    net, x, _ = image_of_constants(1)
    x = net.conv("conv2", x, 2, kernel_size=1, bias=False)
    assert consumer_of(net, net.call("+", net.norm("bn", x), x)).receiver is Receiver.NONE


def test_batch_norm_that_is_called_twice_receives_nothing() -> None:
    net, x, _ = image_of_constants(1)
    x = net.norm("bn", net.conv("conv2", x, 2, kernel_size=1, bias=False))
    assert consumer_of(net, net.layer("bn", "BatchNorm2d", x)).receiver is Receiver.NONE


def test_layer_that_is_called_twice_can_do_without_what_both_calls_can() -> None:
    net = Sketch("Toy", (1, 4, 4))
    a, b = net.conv("a", net.x, 3, kernel_size=1, bias=False), net.conv("b", net.x, 3, kernel_size=1, bias=False)
    shared = net.conv("shared", a, 2, kernel_size=1)
    graph = net.graph(net.call("+", shared, net.layer("shared", "Conv2d", b)))
    state = new_state(graph, 0)
    state["a.weight"][[0, 2]] = 0
    state["b.weight"][[1, 2]] = 0
    consumer = constants_of(graph, state).consumers["shared"]
    assert consumer.receiver is Receiver.NONE
    assert consumer.expendable.tolist() == [False, False, True]


def test_constants_are_derived_from_constants_that_meet_live_weights() -> None:
    net, x, state = image_of_constants(1, 2)
    x = net.conv("conv2", net.call("+", x, net.conv("live", net.x, 2, kernel_size=1)), 3, kernel_size=1)
    graph = net.graph(x)
    state = new_state(graph, 0) | state
    state["live.weight"][0] = 0  # channel 0 is a constant, channel 1 is not
    state["conv2.weight"] = double([0, 0], [5, 0], [5, 5]).view(3, 2, 1, 1)
    found = constants_of(graph, state)
    assert found.values[-1].known.flatten().tolist() == [True, True, False]
    assert found.derived["conv2"].tolist() == [[1, 0]]
    assert len(found.derived["conv1"]) == 0


def test_linear_layer_over_another_dimension_needs_all_that_it_reads() -> None:
    net, x, state = image_of_constants(1, 2)
    graph = net.graph(net.linear("fc", net.call("torch.flatten", x, start_dim=2), 3))
    found = constants_of(graph, new_state(graph, 0) | state)
    assert not found.values[-1].known.any()
    assert not found.consumers["fc"].expendable.any()


def results(graph: LayerGraph, state: State, images: Tensor, *, training: bool, always_eval: Collection[str]) -> dict[Value, Tensor]:
    """What each step of the network that has a row an image really computes."""
    one, two = infer_shapes(graph, 1), infer_shapes(graph, 2)
    shown = [Value(i) for i in range(1, len(one)) if one[i][:1] == (1,) and two[i] == (2, *one[i][1:])]
    whole = replace(graph, extra=tuple(shown), auxiliary=())
    model = network(whole, state)
    model = in_train_mode(model, always_eval) if training else model.eval()
    with torch.no_grad():
        return dict(zip(shown, model(images)[1:], strict=True)) if shown else {}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(layer_graphs(), st.integers(0, 1000), st.sampled_from(sorted(DAMAGES)), st.booleans(), st.booleans())
@settings(max_examples=150, derandomize=True)
def test_what_is_said_to_be_constant_is(graph: LayerGraph, seed: int, damage: str, settled: bool, mixed: bool) -> None:
    state = new_state(graph, seed)
    DAMAGES[damage](graph, state, random.Random(seed))
    if settled:
        settle_(graph, state, images_for(graph))
    always_eval = [layer.name for layer in graph.layers[::2] if mixed]
    found = constants_of(graph, state, always_eval)
    for training, count in ((False, 1), (True, 5)):
        computed = results(graph, state, images_for(graph, seed=1, count=count), training=training, always_eval=always_eval)
        for value, tensor in computed.items():
            whole = found.values[value.index].broadcast()
            known = whole.known.expand(tensor.shape)
            expected = (whole.train_mode if training else whole.eval_mode).expand(tensor.shape)[known]
            assert ((tensor[known] - expected).abs() <= 1e-9 * (1 + expected.abs())).all()
