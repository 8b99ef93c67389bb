"""Methods that remove channels: which ones, by hand and to the digit; and cuts that equal the masked network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import Sketch, depthwise, residual, shuffle
from networks import State, assert_same_function, new_state, well_conditioned, zoo_graph

from prunetrain.channels.masking import mask_channels
from prunetrain.channels.removal import remove_channels
from prunetrain.channels.selection import KeepPlan
from prunetrain.channels.spaces import Role, find_spaces
from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.render import render
from prunetrain.methods import METHODS
from prunetrain.methods.counting import removed_count
from prunetrain.methods.fpgm import distance_sums, mixed_scores
from prunetrain.methods.options import Options
from prunetrain.methods.ranking import filters_of
from prunetrain.methods.registry import decide

CHANNEL_METHODS = sorted(name for name, entry in METHODS.items() if entry.decides == "channels" and name != "unit")


def two_convs(filters: list[list[float]]) -> tuple[LayerGraph, State]:
    """conv1, a 1x1 conv with these filters, and a classifier."""
    weight = torch.tensor(filters, dtype=torch.float64)
    net = Sketch("Toy", (weight.shape[1], 2, 2))
    x = net.conv_bn_relu("1", net.x, len(weight), kernel_size=1)
    graph = well_conditioned(net.graph(net.classifier("fc", x, 2)))
    state = new_state(graph, 0)
    state["conv1.weight"] = weight[..., None, None]
    return graph, state


def plan_of(name: str, graph: LayerGraph, state: State, rate: float, options: Options | None = None) -> KeepPlan:
    plan = decide(name, graph, state, rate, options or Options())
    assert isinstance(plan, KeepPlan)
    return plan


def gone(plan: KeepPlan, layer: str) -> list[int]:
    positions: list[int] = np.flatnonzero(~plan.keep[plan.spaces.ids[layer, "out"]]).tolist()
    return positions


# By hand.

FOUR = [[3.0, 0.0], [2.0, 2.0], [0.0, -2.9], [-1.0, -2.2]]  # L1: 3 4 2.9 3.2; L2: 3 2.83 2.9 2.42


def test_norms_by_hand() -> None:
    assert gone(plan_of("filter-l1", *two_convs(FOUR), 0.5), "conv1") == [0, 2]
    assert gone(plan_of("filter-l2", *two_convs(FOUR), 0.5), "conv1") == [1, 3]
    assert gone(plan_of("filter-l2", *two_convs(FOUR), 0.74), "conv1") == [1, 3]


LINE = [[0.0], [1.0], [3.0], [7.0], [8.0]]  # sums of distances: 19 16 14 18 21


def test_geometric_median_by_hand() -> None:
    assert distance_sums(torch.tensor(LINE)).tolist() == [19, 16, 14, 18, 21]
    assert gone(plan_of("fpgm", *two_convs(LINE), 0.2), "conv1") == [2]
    assert gone(plan_of("fpgm", *two_convs(LINE), 0.6), "conv1") == [1, 2, 3]


def test_geometric_median_mixed_with_norms_by_hand() -> None:
    """Of two that go, half by norm: 0; then, among 1 3 7 8, the sums are 15 11 11 13: 3 goes before 7."""
    assert mixed_scores(torch.tensor(LINE), 1).tolist() == [-9, 15, 11, 11, 13]
    assert gone(plan_of("fpgm", *two_convs(LINE), 0.4, Options(norm_share=0.5)), "conv1") == [0, 2]
    assert gone(plan_of("fpgm", *two_convs(LINE), 0.4, Options(norm_share=0.49)), "conv1") == [1, 2]
    assert gone(plan_of("fpgm", *two_convs(LINE), 0.4, Options(norm_share=1)), "conv1") == [0, 1]


def test_units_by_hand() -> None:
    net = Sketch("Toy", (2,))
    graph = net.graph(net.linear("fc2", net.call("F.relu", net.linear("fc1", net.x, 4)), 3))
    state = new_state(graph, 0)
    state["fc1.weight"] = torch.tensor(FOUR, dtype=torch.float64)
    plan = plan_of("unit", graph, state, 0.5)
    assert gone(plan, "fc1") == [1, 3]
    assert gone(plan, "fc2") == []
    cut = remove_channels(graph, state, plan).cut
    assert torch.equal(cut.state["fc1.weight"], state["fc1.weight"][[0, 2]])
    assert torch.equal(cut.state["fc2.weight"], state["fc2.weight"][:, [0, 2]])


def test_of_equal_filters_the_first_go() -> None:
    assert gone(plan_of("filter-l1", *two_convs([[1.0], [-1.0], [1.0], [2.0]]), 0.5), "conv1") == [0, 1]


def test_random_channels_follow_from_the_seed() -> None:
    graph, state = residual(), new_state(residual(), 0)
    first, same, other = (plan_of("random", graph, state, 0.5, Options(seed=seed)) for seed in (0, 0, 1))
    assert (first.keep == same.keep).all()
    assert (first.keep != other.keep).any()


def test_granularity_keeps_the_strongest_of_those_that_go() -> None:
    filters = [[float(n)] for n in (5, 1, 4, 2, 6, 3)]
    assert gone(plan_of("filter-l2", *two_convs(filters), 0.5, Options(granularity=2)), "conv1") == [1, 3]
    assert gone(plan_of("filter-l2", *two_convs(filters), 0.5, Options(granularity=8)), "conv1") == []


# Residual streams.


def test_streams_stay_unless_they_are_pruned_together() -> None:
    graph = residual()
    state = new_state(graph, 0)
    apart = plan_of("filter-l2", graph, state, 0.5)
    together = plan_of("filter-l2", graph, state, 0.5, Options(streams="together"))
    counts = {name: kept for name, (kept, _) in together.counts().items()}
    assert [len(gone(apart, name)) for name in ("conv1", "layer1_0_conv1", "layer2_0_conv1", "layer2_0_conv2")] == [0, 4, 8, 0]
    assert (counts["conv1"], counts["layer1_0_conv1"]) == (4, 4)
    assert gone(together, "conv1") == gone(together, "layer1_0_conv2")
    assert gone(together, "layer2_0_conv2") == gone(together, "layer2_0_downsample_0")


def test_filters_of_several_producers_are_one_behind_the_other_and_none_speaks_louder() -> None:
    graph = residual(stem=2)
    state = new_state(graph, 0)
    state["conv1.weight"], state["layer1_0_conv2.weight"] = torch.zeros_like(state["conv1.weight"]), 0 * state["layer1_0_conv2.weight"]
    state["conv1.weight"][:, 0, 0, 0] = torch.tensor([3.0, 4.0]) * 1000
    state["layer1_0_conv2.weight"][:, 0, 0, 0] = torch.tensor([7.0, 1.0])
    spaces = find_spaces(graph)
    space = spaces.spaces[int(spaces.space_of[spaces.ids["conv1", "out"][0]])]
    matrix = filters_of(space, spaces, {layer.name: layer for layer in graph.layers}, state)
    assert matrix.shape == (2, 3 * 9 + 8 * 9)
    assert matrix[:, 0].tolist() == pytest.approx([3 / 12.5**0.5, 4 / 12.5**0.5])
    assert matrix[:, 27].tolist() == pytest.approx([7 / 5, 1 / 5])
    assert gone(plan_of("filter-l2", graph, state, 0.5, Options(streams="together")), "conv1") == [1]  # 0.85 + 1.4 against 1.13 + 0.2


def test_a_channel_has_all_its_rows_of_a_producer() -> None:
    """In a conv of two groups channel i is output i of each group: the second group makes up for a small filter in the first."""
    net = Sketch("Toy", (16, 2, 2))
    graph = net.graph(net.classifier("fc", net.conv("conv1", net.x, 4, kernel_size=1, groups=2, bias=False), 2))
    state = new_state(graph, 0)
    state["conv1.weight"] = torch.tensor([1.0, 2.0, 5.0, 1.0], dtype=torch.float64).view(4, 1, 1, 1).expand(4, 8, 1, 1).clone()
    assert gone(plan_of("filter-l1", graph, state, 0.5), "conv1") == [1, 3]


def test_layers_with_rates_of_their_own() -> None:
    graph = residual()
    plan = plan_of("filter-l2", graph, new_state(graph, 0), 0.5, Options(layer_rates={"layer1_0_conv1": 0, "layer2_0_conv1": 0.25}))
    assert [len(gone(plan, name)) for name in ("layer1_0_conv1", "layer2_0_conv1")] == [0, 4]


# Properties.


@pytest.mark.parametrize("name", CHANNEL_METHODS)
@pytest.mark.parametrize("streams", ["apart", "together"])
def test_every_space_loses_what_was_asked_rounded_down(name: str, streams: str) -> None:
    graph = residual(stem=7, inner=(9, 13), wide=11)
    state = new_state(graph, 0)
    for rate in (0.0, 0.29, 0.5, 0.7, 0.99):
        plan = plan_of(name, graph, state, rate, Options(streams=streams, norm_share=0.25))
        for space in plan.spaces.spaces:
            pruned = not space.frozen and (streams == "together" or len(space.members[Role.PRODUCER]) == 1)
            count = removed_count(len(space.channels), rate) if pruned else 0
            assert (~plan.keep[space.channels]).sum() == count


@pytest.mark.parametrize("name", CHANNEL_METHODS)
@pytest.mark.parametrize("model", ["resnet20", "mobilenet-v1-cifar", "lenet5", "vgg8"])
def test_the_cut_network_is_the_masked_one(name: str, model: str) -> None:
    graph = zoo_graph(model, width=5)
    state = new_state(graph, 1)
    plan = plan_of(name, graph, state, 0.5, Options(streams="together"))
    removal = remove_channels(graph, state, plan)
    assert (removal.plan.keep == plan.keep).all()
    assert not plan.keep.all()
    assert_same_function(graph, mask_channels(graph, state, plan.spaces, ~plan.keep), removal.cut)


def test_depthwise_and_shuffled_channels_go_with_their_producers() -> None:
    for make, names in ((depthwise, ("conv1", "block1_pointwise")), (shuffle, ("stage2_0_conv1", "stage2_1_conv1"))):
        graph = well_conditioned(make())
        plan = plan_of("filter-l1", graph, new_state(graph, 0), 0.5)
        for name in names:
            assert 2 * len(gone(plan, name)) == graph.layer(name)["out_channels"]


def test_the_example_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
    example = text.partition("```python\n")[2].partition("```")[0]
    graph = zoo_graph("lenet5", width=10)
    (tmp_path / "resnet26.py").write_text(render(graph))
    torch.save(new_state(graph, 0), tmp_path / "resnet26.pt")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["masks"].removed == removed_count(names["masks"].total, 0.9)
    assert names["cut"].graph.layer("conv1")["out_channels"] == 6


# Bad input.


def test_networks_that_have_nothing_to_prune() -> None:
    net = Sketch("Toy", (3, 4, 4))
    only = net.graph(net.classifier("fc", net.x, 2))
    with pytest.raises(ConfigError, match=r"no filters of this network can go: it has no layer of the classes Conv1d, Conv2d, ConvTr"):
        decide("filter-l1", only, new_state(only, 0), 0.5)
    with pytest.raises(ConfigError, match=r"no units of this network can go: all are frozen \(fc: the network's output\)"):
        decide("unit", only, new_state(only, 0), 0.5)
    net = Sketch("Toy", (3, 4, 4))
    x = net.call("F.conv2d", net.x, weight=net.declare("weight", (4, 3, 1, 1)))
    computed = net.graph(net.classifier("fc", x, 2))
    with pytest.raises(ConfigError, match=r"a method removes what layers make, not functions that are given their weights"):
        decide("fpgm", computed, new_state(computed, 0), 0.5)
    net = Sketch("Toy", (3, 4, 4))
    tied = net.call("+", net.conv("conv1", net.x, 4, kernel_size=1), net.conv("conv2", net.x, 4, kernel_size=1))
    streams = net.graph(net.classifier("fc", tied, 2))
    with pytest.raises(ConfigError, match="all have several producers: prune them with streams='together'"):
        decide("fpgm", streams, new_state(streams, 0), 0.5)
