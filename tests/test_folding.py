"""BatchNorm folded into the layer before it: the same outputs in eval mode, and what must stay."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from graphs import Sketch, depthwise, head, layer_graphs
from hypothesis import given, settings
from networks import images_for, network, new_state, zoo_graph

from prunetrain import zoo
from prunetrain.channels.folding import count_batch_norms, fold_batch_norm, remove_training_heads
from prunetrain.graph.layergraph import LayerGraph, Value
from prunetrain.graph.parse import parse
from prunetrain.graph.render import render
from prunetrain.training.export_formats import outputs_of


def folded(graph: LayerGraph, seed: int = 0) -> LayerGraph:
    """The folded graph, after all was checked that must hold of any."""
    state = {name: t if t.is_floating_point() else torch.zeros_like(t) for name, t in new_state(graph, seed).items()}  # 0: any index
    before = {name: tensor.clone() for name, tensor in state.items()}
    smaller, weights = fold_batch_norm(graph, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
    assert parse(render(smaller), "<test>") == smaller
    assert set(weights) == set(network(smaller).state_dict())
    images = images_for(graph, seed=seed)
    unfolded, after = (outputs_of(network(*pair).eval(), images) for pair in ((graph, state), (smaller, weights)))
    for expected, found in zip(unfolded, after, strict=True):
        assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()
    return smaller


def test_by_hand() -> None:
    net = Sketch("Net", (1, 1, 1))
    x = net.norm("bn", net.conv("conv", net.x, 2, kernel_size=1), eps=1.0)
    state = {
        "conv.weight": torch.tensor([2.0, -1.0]).view(2, 1, 1, 1),
        "conv.bias": torch.tensor([1.0, 0.0]),
        "bn.weight": torch.tensor([6.0, 1.0]),
        "bn.bias": torch.tensor([5.0, 0.0]),
        "bn.running_mean": torch.tensor([10.0, 4.0]),
        "bn.running_var": torch.tensor([3.0, 15.0]),  # with eps 4 and 16: scales are 6 / 2 and 1 / 4
        "bn.num_batches_tracked": torch.tensor(7),
    }
    graph, weights = fold_batch_norm(net.graph(x), state)
    assert [(layer.name, dict(layer.arguments)) for layer in graph.layers] == [
        ("conv", {"in_channels": 1, "out_channels": 2, "kernel_size": 1})
    ]
    assert {name: tensor.flatten().tolist() for name, tensor in weights.items()} == {
        "conv.weight": [3 * 2, -1 / 4],
        "conv.bias": [5 + 3 * (1 - 10), 0 + (0 - 4) / 4],
    }
    assert weights["conv.weight"].dtype == torch.float32


@pytest.mark.parametrize("name", zoo.names())
def test_zoo(name: str) -> None:
    graph = zoo_graph(name, width=3)
    smaller = folded(graph)
    assert count_batch_norms(smaller) == 0
    assert len(smaller.steps) == len(graph.steps) - count_batch_norms(graph)
    assert smaller == graph or count_batch_norms(graph)


@given(graph=layer_graphs())
@settings(max_examples=30)
def test_any_network(graph: LayerGraph) -> None:
    folded(graph)


@pytest.mark.parametrize("make", [depthwise, head])
def test_depthwise_and_linear(make: Callable[[], LayerGraph]) -> None:
    assert count_batch_norms(make())
    assert count_batch_norms(folded(make())) == 0


def test_conv1d() -> None:
    net = Sketch("Net", (3, 5))
    x = net.layer("conv", "Conv1d", net.x, in_channels=3, out_channels=4, kernel_size=2)
    assert [layer.name for layer in folded(net.graph(net.layer("bn", "BatchNorm1d", x, num_features=4))).layers] == ["conv"]


def test_without_scale_and_bias() -> None:
    net = Sketch("Net", (3, 5, 5))
    x = net.norm("bn", net.conv("conv", net.x, 4, kernel_size=3, bias=False), affine=False)
    assert [layer.name for layer in folded(net.graph(net.call("F.relu", x))).layers] == ["conv"]


def test_half_stays_half() -> None:
    net = Sketch("Net", (3, 5, 5))
    graph = net.graph(net.norm("bn", net.conv("conv", net.x, 4, kernel_size=3, bias=False)))
    state = {name: tensor.half() for name, tensor in new_state(graph, 0).items()}
    assert {tensor.dtype for tensor in fold_batch_norm(graph, state)[1].values()} == {torch.float16}


def _two_readers(net: Sketch) -> None:
    x = net.conv("conv", net.x, 3, kernel_size=1)
    net.call("+", net.norm("bn", x), x)


def _conv_called_twice(net: Sketch) -> None:
    x = net.layer("conv", "Conv2d", net.conv("conv", net.x, 3, kernel_size=1))
    net.norm("bn", x)


def _norm_called_twice(net: Sketch) -> None:
    x = net.norm("bn", net.conv("conv1", net.x, 3, kernel_size=1))
    net.layer("bn", "BatchNorm2d", net.conv("conv2", x, 3, kernel_size=1))


def _statistics_of_the_batch(net: Sketch) -> None:
    net.norm("bn", net.conv("conv", net.x, 3, kernel_size=1), track_running_stats=False)


def _norm_first(net: Sketch) -> None:
    net.conv("conv", net.norm("bn", net.x), 3, kernel_size=3, padding=1)


def _activation_between(net: Sketch) -> None:
    net.norm("bn", net.call("F.relu", net.conv("conv", net.x, 3, kernel_size=1)))


@pytest.mark.parametrize(
    "write", [_two_readers, _conv_called_twice, _norm_called_twice, _statistics_of_the_batch, _norm_first, _activation_between]
)
def test_stays(write: Callable[[Sketch], None]) -> None:
    net = Sketch("Net", (3, 4, 4))
    write(net)
    graph = net.graph(net.call("F.relu", Value(len(net.steps))))
    assert folded(graph) == graph


def test_linear_over_rows_stays() -> None:
    """On (N, 3, 5) BatchNorm's channels are the 3 rows, and linear makes 3 features of each: folding would go unnoticed."""
    net = Sketch("Net", (3, 5))
    graph = net.graph(net.layer("bn", "BatchNorm1d", net.linear("fc", net.x, 3), num_features=3))
    assert folded(graph) == graph


def test_result_that_is_an_output_stays() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.conv("conv", net.x, 3, kernel_size=1)
    graph = net.graph(net.norm("bn", x))
    assert fold_batch_norm(graph, new_state(graph, 0))[0] != graph
    for other in ({"extra": (x,)}, {"auxiliary": (x,)}):
        several = replace(graph, **other)
        assert fold_batch_norm(several, new_state(graph, 0))[0] == several


def test_for_inference() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.conv_bn_relu("1", net.x, 4, kernel_size=3)
    head = net.call("+", net.conv("head", x, 2, kernel_size=1), net.declare("bias", (2, 1, 1)))
    y = net.call("F.silu", net.conv("conv2", x, 2, kernel_size=1))
    layers, declared = tuple(net.layers.values()), tuple(net.declared.values())
    graph = LayerGraph("Net", (3, 4, 4), layers, tuple(net.steps), y, declared, extra=(x,), auxiliary=(head, x))
    state = new_state(graph, 0)
    smaller, weights = remove_training_heads(graph, state)
    assert [step.target for step in smaller.steps] == ["self.conv1", "self.bn1", "F.relu", "self.conv2", "F.silu"]
    assert ([layer.name for layer in smaller.layers], smaller.declared) == (["conv1", "bn1", "conv2"], ())
    assert (smaller.output.index, smaller.extra, smaller.auxiliary) == (5, (x,), ())
    assert set(weights) == {name for name in state if name.split(".")[0] not in ("head", "bias")}
    images = images_for(graph)
    for was, now in zip(*(outputs_of(network(*pair).eval(), images) for pair in ((graph, state), (smaller, weights))), strict=True):
        assert torch.equal(was, now)
    assert remove_training_heads(smaller, weights)[0] == smaller


def test_outputs_are_renumbered() -> None:
    net = Sketch("Net", (3, 4, 4))
    x = net.call("F.relu", net.norm("bn1", net.conv("conv1", net.x, 3, kernel_size=1)))
    y = net.norm("bn2", net.conv("conv2", x, 2, kernel_size=1))
    graph = replace(net.graph(y), extra=(x,), auxiliary=(y,))
    smaller, _ = fold_batch_norm(graph, new_state(graph, 0))
    assert [step.target for step in smaller.steps] == ["self.conv1", "F.relu", "self.conv2"]
    assert [value.index for value in (*smaller.extra, *smaller.auxiliary, smaller.output)] == [2, 3, 3]
