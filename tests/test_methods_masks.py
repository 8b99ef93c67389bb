"""Methods that zero weights: which ones, by hand and to the digit; and sparsity that is what was asked, rounded down."""

from fractions import Fraction

import pytest
import torch
from graphs import Sketch, grouped, residual
from hypothesis import given
from hypothesis import strategies as st
from networks import State, new_state, well_conditioned
from torch import Tensor, nn
from torch.nn.utils import prune

from prunetrain.channels.removal import remove_channels
from prunetrain.errors import ConfigError
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.methods.conversions import filter_masks, plan_of_masks
from prunetrain.methods.counting import rates_of_rounds, removed_count, smallest_mask
from prunetrain.methods.masks import Masks
from prunetrain.methods.options import Options
from prunetrain.methods.registry import decide
from prunetrain.methods.weights import maskable_weights


def two_layers() -> tuple[LayerGraph, State]:
    """fc1 (4 -> 2) and fc2 (2 -> 3) with weights to count by."""
    net = Sketch("Toy", (4,))
    graph = net.graph(net.linear("fc2", net.call("F.relu", net.linear("fc1", net.x, 2, bias=False)), 3, bias=False))
    weights = {"fc1.weight": [[1.0, -2.0, 3.0, -4.0], [0.5, 6.0, -7.0, 8.0]], "fc2.weight": [[0.1, -0.2], [5.0, -0.3], [0.4, 9.0]]}
    return graph, {name: torch.tensor(rows) for name, rows in weights.items()}


def masks_of(name: str, graph: LayerGraph, state: State, amount: float, options: Options | None = None) -> Masks:
    masks = decide(name, graph, state, amount, options or Options())
    assert isinstance(masks, Masks)
    masks.check_fits(state)
    return masks


def gone(masks: Masks, name: str) -> list[list[int]]:
    indices: list[list[int]] = (~masks.keep[name]).nonzero().tolist()
    return indices


# Counting.


@given(total=st.integers(0, 10**7), hundredths=st.integers(0, 99))
def test_counts_are_those_of_the_rate_as_it_is_written(total: int, hundredths: int) -> None:
    assert removed_count(total, hundredths / 100) == hundredths * total // 100


def test_counts_by_hand() -> None:
    assert [removed_count(n, r) for n, r in ((100, 0.29), (10, 0.99), (7, 0.5), (1, 0.999), (5, 0))] == [29, 9, 3, 0, 0]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.data())
def test_of_equal_scores_the_first_go(numbers: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(numbers)))
    expected = sorted(sorted(range(len(numbers)), key=lambda i: numbers[i])[:count])
    assert smallest_mask(torch.tensor(numbers, dtype=torch.float32), count).nonzero().flatten().tolist() == expected


def test_what_is_no_number_goes_last() -> None:
    scores = torch.tensor([float("nan"), 1, float("inf"), 0, float("nan")])
    assert [smallest_mask(scores, count).nonzero().flatten().tolist() for count in (2, 3, 4)] == [[1, 3], [0, 1, 3], [0, 1, 2, 3]]


def test_rounds_remove_the_same_share_of_what_remains() -> None:
    rates = rates_of_rounds(0.488, 3)
    assert rates == pytest.approx([0.2, 0.36, 0.488])
    assert rates[-1] == 0.488
    counts = {rate: [removed_count(1000, share) for share in rates_of_rounds(rate, 3)] for rate in (0.271, 0.488, 0.875)}
    assert counts == {0.271: [100, 190, 271], 0.488: [200, 360, 488], 0.875: [500, 750, 875]}


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_outside_are_refused(rate: float) -> None:
    graph, state = two_layers()
    with pytest.raises(ConfigError, match="must be at least 0 and below 1"):
        decide("magnitude", graph, state, rate)


# Magnitude.


def test_magnitude_by_layer() -> None:
    masks = masks_of("magnitude", *two_layers(), 0.5)
    assert gone(masks, "fc1.weight") == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert gone(masks, "fc2.weight") == [[0, 0], [0, 1], [1, 1]]


def test_magnitude_over_all_layers() -> None:
    masks = masks_of("magnitude", *two_layers(), 0.5, Options(scope="global"))  # 7 of 14: 0.1 0.2 0.3 0.4 0.5 1 2
    assert gone(masks, "fc1.weight") == [[0, 0], [0, 1], [1, 0]]
    assert gone(masks, "fc2.weight") == [[0, 0], [0, 1], [1, 1], [2, 0]]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_layers_with_rates_of_their_own(scope: str) -> None:
    options = Options(scope=scope, layer_rates={"fc2": 0.34})
    masks = masks_of("magnitude", *two_layers(), 0.25, options)
    assert gone(masks, "fc1.weight") == [[0, 0], [1, 0]]
    assert gone(masks, "fc2.weight") == [[0, 0], [0, 1]]


def test_of_equal_weights_the_first_go() -> None:
    graph, state = two_layers()
    state["fc1.weight"] = torch.tensor([[1.0, -1.0, 1.0, 2.0], [-1.0, 1.0, 0.0, 3.0]])
    assert gone(masks_of("magnitude", graph, state, 0.5), "fc1.weight") == [[0, 0], [0, 1], [0, 2], [1, 2]]


def test_magnitude_by_standard_deviation() -> None:
    """fc2: 0.1 -0.2 5 -0.3 0.4 9, mean 14 / 6, mean square 106.3 / 6: the standard deviation is 3.503, and 5 survives 1.4 times it."""
    masks = masks_of("magnitude-std", *two_layers(), 1.4, Options(layer_rates={"fc1": 0}))
    assert masks.keep["fc1.weight"].all()
    assert gone(masks, "fc2.weight") == [[0, 0], [0, 1], [1, 1], [2, 0]]
    assert gone(masks_of("magnitude-std", *two_layers(), 1.43), "fc2.weight") == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]


def test_standard_deviation_of_what_is_left() -> None:
    graph, state = two_layers()
    first = masks_of("magnitude-std", graph, state, 0.1)  # fc2: under 0.35
    assert gone(first, "fc2.weight") == [[0, 0], [0, 1], [1, 1]]
    second = masks_of("magnitude-std", graph, first.applied(state), 0.15, Options(earlier=first))  # of 5 0.4 9: 3.517
    assert gone(second, "fc2.weight") == [[0, 0], [0, 1], [1, 1], [2, 0]]


def test_what_went_in_an_earlier_round_goes_again_whatever_it_became() -> None:
    graph, state = two_layers()
    first = masks_of("magnitude", graph, state, 0.25)
    state["fc1.weight"][0, 0] = 100.0
    second = masks_of("magnitude", graph, state, 0.5, Options(earlier=first))
    assert gone(second, "fc1.weight") == [[0, 0], [0, 1], [0, 2], [1, 0]]


def test_masks_are_those_of_torch_where_rules_agree() -> None:
    graph = residual()
    state = new_state(graph, 0)
    masks = masks_of("magnitude", graph, state, 0.5)
    layers = {}
    for name, weight in maskable_weights(graph, state).items():
        layers[name] = nn.Linear(1, 1)
        layers[name].weight = nn.Parameter(weight.clone())
        prune.l1_unstructured(layers[name], "weight", amount=weight.numel() // 2)
        assert torch.equal(layers[name].weight_mask.bool(), masks.keep[name])
    whole = masks_of("magnitude", graph, state, 0.3, Options(scope="global"))
    fresh = {name: nn.Linear(1, 1) for name in layers}
    for name, layer in fresh.items():
        layer.weight = nn.Parameter(state[name].clone())
    prune.global_unstructured([(layer, "weight") for layer in fresh.values()], prune.L1Unstructured, amount=removed_count(whole.total, 0.3))
    assert all(torch.equal(layer.weight_mask.bool(), whole.keep[name]) for name, layer in fresh.items())


@given(hundredths=st.integers(0, 99), scope=st.sampled_from(["layer", "global"]), name=st.sampled_from(["magnitude", "random-weights"]))
def test_sparsity_is_what_was_asked_rounded_down(hundredths: int, scope: str, name: str) -> None:
    graph = residual()
    state = new_state(graph, hundredths)
    masks = masks_of(name, graph, state, hundredths / 100, Options(scope=scope))
    counts = [mask.numel() for mask in masks.keep.values()]
    asked = Fraction(hundredths, 100)
    assert masks.total == sum(counts) == sum(weight.numel() for weight in maskable_weights(graph, state).values())
    assert masks.removed == (int(asked * sum(counts)) if scope == "global" else sum(int(asked * count) for count in counts))


def test_random_weights_follow_from_the_seed_and_the_layer() -> None:
    graph, state = residual(), new_state(residual(), 0)
    first, same, other = (masks_of("random-weights", graph, state, 0.5, Options(seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first.keep[name], same.keep[name]) for name in first.keep)
    assert any(not torch.equal(first.keep[name], other.keep[name]) for name in first.keep)
    pair = ("layer2_0_conv2.weight", "layer1_0_conv2.weight")
    assert not torch.equal(*(first.keep[name].flatten()[:500] for name in pair))


# 2:4.


def test_two_of_four_by_hand() -> None:
    net = Sketch("Toy", (8,))
    graph = net.graph(net.linear("fc2", net.linear("fc1", net.x, 1), 3))
    state = new_state(graph, 0)
    state["fc1.weight"] = torch.tensor([[1.0, -2.0, 3.0, -4.0, 5.0, -5.0, 5.0, 0.0]])
    masks = masks_of("2:4", graph, state, 0.5)
    assert masks.keep.keys() == {"fc1.weight"}
    assert gone(masks, "fc1.weight") == [[0, 0], [0, 1], [0, 4], [0, 7]]


def test_two_of_four_along_the_channels_of_convs() -> None:
    graph = residual()
    state = new_state(graph, 0)
    masks = masks_of("2:4", graph, state, 0.5, Options(layer_rates={"fc": 0}))
    assert "conv1.weight" not in masks.keep  # three inputs
    assert "fc.weight" not in masks.keep
    for mask in masks.keep.values():
        assert (mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize(("groups", "masked"), [(1, True), (2, True), (4, False)])
def test_two_of_four_along_the_inputs_of_transposed_convs(groups: int, masked: bool) -> None:
    net = Sketch("Toy", (3, 4, 4))
    x = net.conv("conv1", net.x, 8, kernel_size=1)
    up = net.layer("up", "ConvTranspose2d", x, in_channels=8, out_channels=4 * groups, kernel_size=2, groups=groups)
    graph = net.graph(net.conv("conv2", up, 2, kernel_size=1))
    masks = masks_of("2:4", graph, new_state(graph, 0), 0.5, Options(layer_rates={"conv1": 0}))
    assert ("up.weight" in masks.keep) == masked
    if masked:
        assert (masks.keep["up.weight"].movedim(0, -1).reshape(-1, 4).sum(1) == 2).all()  # (in, out / groups, 2, 2)


def test_two_of_four_is_half() -> None:
    with pytest.raises(ConfigError, match=r"give rate 0\.5"):
        decide("2:4", *two_layers(), 0.25)
    net = Sketch("Toy", (3,))
    graph = net.graph(net.linear("fc", net.x, 2))
    with pytest.raises(ConfigError, match="a multiple of 4 inputs"):
        decide("2:4", graph, new_state(graph, 0), 0.5)


# Slices.


def test_filters_and_slices_by_hand() -> None:
    graph, state = two_layers()
    state["fc2.weight"] = torch.tensor([[3.0, -1.0], [0.0, 4.0], [0.0, 0.0]])  # columns: 3 and 4.12
    filters = masks_of("magnitude", graph, state, 0.5, Options(structure="filters"))
    assert filters.keep.keys() == {"fc1.weight"}
    assert filters.keep["fc1.weight"].tolist() == [[False] * 4, [True] * 4]
    slices = masks_of("magnitude", graph, state, 0.5, Options(structure="channels"))
    assert slices.keep.keys() == {"fc2.weight"}
    assert slices.keep["fc2.weight"].tolist() == [[False, True]] * 3


@pytest.mark.parametrize(("structure", "inner"), [("filters", "conv1.weight"), ("channels", "fc.weight")])
def test_normalisation_at_the_ends_does_not_hide_image_channels_and_logits(structure: str, inner: str) -> None:
    net = Sketch("Toy", (4, 8, 8))
    hidden = net.conv("conv1", net.norm("bn0", net.x), 6, kernel_size=8)
    graph = net.graph(net.norm("bn", net.linear("fc", net.call("torch.flatten", hidden, start_dim=1), 3)))
    assert masks_of("magnitude", graph, new_state(graph, 0), 0.5, Options(structure=structure)).keep.keys() == {inner}


def test_slices_of_transposed_and_grouped_convs() -> None:
    net = Sketch("Toy", (2, 4, 4))
    up = net.layer("up", "ConvTranspose2d", net.conv("conv1", net.x, 3, kernel_size=1), in_channels=3, out_channels=2, kernel_size=2)
    graph = net.graph(net.conv("conv2", up, 2, kernel_size=1))
    state = new_state(graph, 0)
    state["up.weight"][:, 1] *= 0.01
    state["up.weight"][2] *= 0.01
    filters = masks_of("magnitude", graph, state, 0.5, Options(structure="filters")).keep["up.weight"]
    slices = masks_of("magnitude", graph, state, 0.5, Options(structure="channels")).keep["up.weight"]
    assert (filters[:, 0].all(), filters[:, 1].any()) == (True, False)
    assert (slices[:2].all(), slices[2].any()) == (True, False)
    depthwise = {layer.name for layer in grouped().layers if layer.passes_groups}
    kept = masks_of("magnitude", grouped(), new_state(grouped(), 0), 0.5, Options(structure="filters")).keep
    assert depthwise
    assert not depthwise & {name.removesuffix(".weight") for name in kept}


@pytest.mark.parametrize("structure", ["filters", "channels"])
def test_channels_that_masks_leave_without_use_can_be_cut(structure: str) -> None:
    graph = well_conditioned(residual())
    state = new_state(graph, 0)
    masks = masks_of("magnitude", graph, state, 0.5, Options(structure=structure))
    plan = plan_of_masks(graph, masks)
    inside = plan.keep[plan.spaces.ids["layer1_0_conv1", "out"]]
    name, dims = ("layer1_0_conv1.weight", (1, 2, 3)) if structure == "filters" else ("layer1_0_conv2.weight", (0, 2, 3))
    assert inside.tolist() == masks.keep[name].any(dims).tolist()
    assert remove_channels(graph, masks.applied(state), plan).cut.graph.layer("layer1_0_conv1")["out_channels"] == 4


def test_masks_of_a_plan_are_its_filters_and_biases() -> None:
    net = Sketch("Toy", (4,))
    graph = net.graph(net.linear("fc2", net.call("F.relu", net.linear("fc1", net.x, 2)), 3))
    state = new_state(graph, 0)
    state["fc1.weight"][0] *= 0.01
    masks = filter_masks(graph, state, decide("unit", graph, state, 0.5))  # type: ignore[arg-type]
    assert {name: mask.tolist() for name, mask in masks.keep.items()} == {
        "fc1.weight": [[False] * 4, [True] * 4],
        "fc1.bias": [False, True],
    }


# The value.


def test_masks_apply() -> None:
    masks = Masks({"a": torch.tensor([True, False]), "b": torch.tensor([False])})
    assert (masks.total, masks.removed, masks.sparsity) == (3, 2, 2 / 3)
    state = {"a": torch.tensor([1.0, float("nan")]), "c": torch.ones(1)}
    assert masks.applied(state)["a"].tolist() == [1, 0]
    assert torch.isnan(state["a"][1])
    masks.apply_(state)
    assert state["a"].tolist() == [1, 0]
    assert Masks({}).sparsity == 0


def test_masks_follow_a_cut() -> None:
    graph = well_conditioned(residual())
    state = new_state(graph, 0)
    masks = masks_of("magnitude", graph, state, 0.7)
    plan = decide("filter-l2", graph, state, 0.5)
    assert not isinstance(plan, Masks)
    cut = remove_channels(graph, masks.applied(state), plan).cut
    smaller = masks.cut(cut.sources)
    smaller.check_fits(cut.state)
    for name, mask in smaller.keep.items():
        weight: Tensor = cut.state[name]
        assert not weight[~mask].any()
        assert weight[mask].all()


def test_masks_of_another_network_are_refused() -> None:
    with pytest.raises(ConfigError, match="masks belong to another network"):
        Masks({"fc1.weight": torch.ones(3, dtype=torch.bool)}).check_fits(two_layers()[1])


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "layers"}, "unknown scope 'layers': did you mean layer"),
        ({"structure": "filter"}, "unknown structure 'filter': did you mean filters"),
        ({"layer_rates": {"fc1": 1.0}}, "the rate of fc1 must be at least 0 and below 1"),
        ({"norm_share": 2.0}, "norm-share must be from 0 to 1"),
        ({"granularity": 0}, "granularity must be 1 or more"),
    ],
)
def test_bad_options_are_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options(**arguments)  # type: ignore[arg-type]


def test_unknown_names_and_factors_are_one_line() -> None:
    graph, state = two_layers()
    with pytest.raises(ConfigError, match="unknown method 'magnitud': did you mean magnitude"):
        decide("magnitud", graph, state, 0.5)
    with pytest.raises(ConfigError, match="unknown layer 'fc3': did you mean fc2 or fc1"):
        decide("magnitude", graph, state, 0.5, Options(layer_rates={"fc3": 0.1}))
    with pytest.raises(ConfigError, match="takes a factor over 0"):
        decide("magnitude-std", graph, state, 0)
    with pytest.raises(ConfigError, match="finds its own rates"):
        decide("magnitude-std", graph, state, 1, Options(layer_rates={"fc1": 0.5}))
    with pytest.raises(ConfigError, match="leave scope at 'layer'"):
        decide("magnitude", graph, state, 0.5, Options(structure="filters", scope="global"))
