"""A multiple for each channel space from the times of single layers: by hand, with injected times, and once with real ones."""

import pytest
import torch
from graphs import chain, concat, depthwise, grouped, layer_norm, residual
from networks import new_state

from prunetrain.channels.selection import KEEP_ALL
from prunetrain.channels.slicing import Proposal, propose_cut
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import Layer, LayerGraph
from prunetrain.graph.windows import Shape
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.benchmarking.layer_times import LayerTimer
from prunetrain.training.layer_choice import choose_by_layer


def with_dead(graph: LayerGraph, **dead: int) -> Proposal:
    """What can be cut when the first so many filters of layers are dead, with the BatchNorms behind them."""
    state = new_state(graph, 0)
    for layer, count in dead.items():
        for tensor in ("weight", "bias"):
            for name in (layer, layer.replace("conv", "bn")):
                if f"{name}.{tensor}" in state:
                    state[f"{name}.{tensor}"][:count] = 0
    return propose_cut(graph, state, threshold=1e-4, criterion="either")


def macs_of(layer: Layer | None, shape: Shape) -> float:
    """Time in proportion to MACs, of a 1x1 image, and of elements."""
    size = float(torch.Size(shape).numel())
    return size / 1e3 if layer is None or "in_channels" not in dict(layer.arguments) else layer["in_channels"] * layer["out_channels"]


def padded(layer: Layer | None, shape: Shape) -> float:
    """The same of a machine that computes 4 channels at a time, and is a little slower with those that do not fill 4."""
    if layer is None or "in_channels" not in dict(layer.arguments):
        return 0.0
    counts = layer["in_channels"], layer["out_channels"]
    ragged = sum(count % 4 > 0 for count in counts)
    return (-(-counts[0] // 4) * -(-counts[1] // 4)) * (1 + 0.1 * ragged)


def test_time_in_proportion_to_macs_rounds_nothing() -> None:
    proposal = with_dead(residual(), layer1_0_conv1=3, layer2_0_conv1=5)  # of 8 and 16
    assert choose_by_layer(proposal, macs_of) == {"layer1_0_conv1": 1, "layer2_0_conv1": 1}


def test_hardware_that_likes_fours_gets_fours() -> None:
    proposal = with_dead(residual(), layer1_0_conv1=3, layer2_0_conv1=5)  # 5 and 11 live
    choice = choose_by_layer(proposal, padded)
    assert proposal.plan(choice).counts()["layer1_0_conv1"] == (8, 8)
    assert proposal.plan(choice).counts()["layer2_0_conv1"] == (12, 16)


def test_each_space_for_itself() -> None:
    """A layer that is slow with anything but all its channels keeps them; the others lose theirs."""

    def time_of(layer: Layer | None, shape: Shape) -> float:
        slow = layer is not None and layer.name == "layer2_0_conv2" and layer["in_channels"] < 16
        return macs_of(layer, shape) * (10 if slow else 1)

    proposal = with_dead(residual(), layer1_0_conv1=3, layer2_0_conv1=5)
    choice = choose_by_layer(proposal, time_of)
    counts = proposal.plan(choice).counts()
    assert (counts["layer1_0_conv1"], counts["layer2_0_conv1"]) == ((5, 8), (16, 16))


def test_layers_are_timed_at_the_sizes_that_they_get() -> None:
    """What the last network asked for is what it is made of: the graph of the plan has these layers, with inputs of these channels."""
    proposal = with_dead(depthwise(), conv1=3)
    asked: list[tuple[Layer, Shape]] = []

    def time_of(layer: Layer | None, shape: Shape) -> float:
        if layer is not None:
            asked.append((layer, shape))
        return macs_of(layer, shape)

    graph = proposal.graph_for(proposal.plan(choose_by_layer(proposal, time_of)))
    layers = {layer.name: layer for layer in graph.layers}
    assert (layers["conv1"]["out_channels"], layers["block1_depthwise"]["groups"]) == (5, 5)
    sizes = dict(asked)
    assert sizes[layers["block1_depthwise"]] == (1, 5, 6, 6)
    assert sizes[layers["block1_pointwise"]] == (1, 5, 6, 6)
    assert sizes[layers["conv1"]] == (1, 1, 12, 12)


def test_time_that_is_up_ends_the_choice() -> None:
    proposal = with_dead(residual(), layer1_0_conv1=3, layer2_0_conv1=5)
    asked: list[Layer | None] = []
    choice = choose_by_layer(proposal, lambda layer, shape: asked.append(layer) or 1.0, should_stop=lambda: True)  # type: ignore[func-returns-value]
    assert asked == []
    assert {name: kept for name, (kept, _) in proposal.plan(choice).counts().items() if name in choice} == {
        "layer1_0_conv1": 8,
        "layer2_0_conv1": 16,
    }


@pytest.mark.parametrize("make", [chain, residual, depthwise, grouped, concat, layer_norm])
def test_real_layers(make: object) -> None:
    """Whatever layers a network has can be timed; what is chosen leads to a network, of no more MACs than before."""
    graph: LayerGraph = make()  # type: ignore[operator]
    first = next(layer.name for layer in graph.layers if layer.kind in ("Conv2d", "Linear"))
    proposal = with_dead(graph, **{first: 1})
    timer = LayerTimer(Conditions(torch.device("cpu"), 2))
    choice = choose_by_layer(proposal, timer)
    assert set(choice.values()) <= {1, 2, 4, 8, 16, 32, 64, KEEP_ALL}
    assert costs(proposal.graph_for(proposal.plan(choice))).macs <= costs(graph).macs


def test_a_layer_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    conv = torch.nn.Conv2d
    monkeypatch.setattr(torch.nn, "Conv2d", lambda *args, **named: built.append(1) or conv(*args, **named))
    timer = LayerTimer(Conditions(torch.device("cpu"), 2, channels_last=True))
    left, right = (Layer.make(name, "Conv2d", in_channels=3, out_channels=4, kernel_size=1) for name in ("a", "b"))
    assert timer(left, (1, 3, 4, 4)) == timer(right, (1, 3, 4, 4)) > 0
    assert len(built) == 1
    timer(left, (1, 3, 5, 5))
    assert len(built) == 2
    assert timer(None, (1, 3, 8, 8)) == pytest.approx(4 * timer(None, (1, 3, 4, 4)))
