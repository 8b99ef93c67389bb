"""Which channels go: hand-made weights, thresholds, rounding up, and spaces that would be empty."""

import itertools
import random

import numpy as np
import pytest
import torch
from graphs import Sketch, layer_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import DAMAGES, State, new_state

from prunetrain.channels.constants import find_constants
from prunetrain.channels.selection import Candidates, KeepPlan, find_candidates, make_plan
from prunetrain.channels.slices import measure_slices
from prunetrain.channels.slicing import propose_cut
from prunetrain.channels.spaces import find_spaces
from prunetrain.graph.layergraph import LayerGraph

THRESHOLD = 1e-4


def candidates_of(graph: LayerGraph, state: State, criterion: str) -> Candidates:
    slices = measure_slices(graph, state, THRESHOLD)
    return find_candidates(find_spaces(graph), slices, find_constants(graph, find_spaces(graph), state, slices, THRESHOLD), criterion)


def chain() -> LayerGraph:
    """conv1 (1 -> 5), conv2 (5 -> 4), conv3 (4 -> 2), all 1x1 and without bias."""
    net = Sketch("Toy", (1, 3, 3))
    x = net.conv("conv1", net.x, 5, kernel_size=1, bias=False)
    x = net.conv("conv2", x, 4, kernel_size=1, bias=False)
    return net.graph(net.conv("conv3", x, 2, kernel_size=1, bias=False))


def ones(graph: LayerGraph) -> State:
    return {name: torch.ones_like(tensor) for name, tensor in new_state(graph, 0).items()}


def removable(candidates: Candidates, name: str, axis: str = "out") -> list[bool]:
    return candidates.removable[candidates.spaces.ids[name, axis]].tolist()


def test_slices_of_a_layer() -> None:
    graph = chain()
    state = ones(graph)
    state["conv2.weight"] = torch.tensor([[3.0, 0, 0, 0, 4], [0, 0, 0, 0, 0], [-1, 1, 0, 0, 0], [0, 9e-5, -9e-5, 0, 2e-4]])[
        :, :, None, None
    ]
    found = measure_slices(graph, state, THRESHOLD)["conv2"]
    assert found.dead.tolist() == [
        [False, True, True, True, False],
        [True, True, True, True, True],
        [False, False, True, True, True],
        [True, True, True, True, False],
    ]
    assert found.filter_norms[:3].tolist() == pytest.approx([5, 0, 2**0.5])
    assert found.input_norms[[0, 3, 4]].tolist() == pytest.approx([10**0.5, 0, 4])


@pytest.mark.parametrize(
    ("weight", "dead"), [(-1.0, False), (1.0, False), (-1e-4, False), (-9.9e-5, True), (0.0, True), (float("nan"), False)]
)
def test_threshold_is_for_absolute_values(weight: float, dead: bool) -> None:
    net = Sketch("Toy", (1, 3, 3))
    graph = net.graph(net.conv("conv1", net.x, 2, kernel_size=3))
    state = new_state(graph, 0)
    state["conv1.weight"][0] = weight
    assert measure_slices(graph, state, THRESHOLD)["conv1"].dead.tolist() == [[dead], [False]]


def test_criteria_by_hand() -> None:
    """Channel 0 of conv1: filter and slice dead; 1: only the filter; 2: only the slice; 3 and 4: neither."""
    graph = chain()
    state = ones(graph)
    state["conv1.weight"][[0, 1]] = 0
    state["conv2.weight"][:, [0, 2]] = 0
    assert removable(candidates_of(graph, state, "union"), "conv1") == [True, False, False, False, False]
    assert removable(candidates_of(graph, state, "either"), "conv1") == [True, True, True, False, False]


def test_residual_stream_by_hand() -> None:
    """The stream's producers are conv1 and conv3, its consumers conv2 and fc."""
    net = Sketch("Toy", (1, 3, 3))
    stem = net.conv("conv1", net.x, 6, kernel_size=1, bias=False)
    x = net.call("+", net.conv("conv3", net.conv("conv2", stem, 2, kernel_size=1, bias=False), 6, kernel_size=1, bias=False), stem)
    graph = net.graph(net.classifier("fc", x, 2))
    state = ones(graph)
    state["conv1.weight"][[0, 1, 2]] = 0
    state["conv3.weight"][[0, 2, 3]] = 0
    state["conv2.weight"][:, [0, 1, 3, 4]] = 0
    state["fc.weight"][:, [0, 4]] = 0
    # 0: all dead. 1: conv3 still writes, fc reads. 2: nobody writes. 3: conv1 writes, fc reads. 4: nobody reads. 5: alive.
    assert removable(candidates_of(graph, state, "union"), "conv1") == [True, False, False, False, False, False]
    assert removable(candidates_of(graph, state, "either"), "conv1") == [True, False, True, False, True, False]


def test_union_does_not_ask_what_arrives() -> None:
    """A dead filter in front of a BatchNorm makes a constant; with the reading slice dead as well it can go."""
    net = Sketch("Toy", (1, 3, 3))
    x = net.norm("bn", net.conv("conv1", net.x, 3, kernel_size=1, bias=False))
    graph = net.graph(net.conv("conv2", x, 2, kernel_size=3, padding=1, bias=False))
    state = new_state(graph, 0)
    state["conv1.weight"][[0, 1]] = 0
    state["conv2.weight"][:, [0]] = 0
    for criterion in ("union", "either"):  # the padding forbids channel 1 in both
        assert removable(candidates_of(graph, state, criterion), "conv1") == [True, False, False]


def test_input_and_output_are_never_cut() -> None:
    graph = chain()
    state = {name: torch.zeros_like(tensor) for name, tensor in new_state(graph, 0).items()}
    for criterion in ("union", "either"):
        candidates = candidates_of(graph, state, criterion)
        assert removable(candidates, "conv1", "in") == [False]
        assert removable(candidates, "conv3") == [False, False]
        assert removable(candidates, "conv1") == [True] * 5


def test_flattened_channel_goes_only_with_all_its_features() -> None:
    net = Sketch("Toy", (1, 2, 2))
    x = net.call("torch.flatten", net.conv("conv1", net.x, 2, kernel_size=1, bias=False), start_dim=1)
    graph = net.graph(net.linear("fc", x, 3))
    state = ones(graph)
    state["fc.weight"][:, [0, 1, 2, 4, 5, 6, 7]] = 0
    assert removable(candidates_of(graph, state, "either"), "conv1") == [False, True]


def test_strength_is_the_norm_of_all_slices() -> None:
    graph = chain()
    state = ones(graph)
    state["conv1.weight"][0] = 3
    state["conv2.weight"][:, 0] = -2
    candidates = candidates_of(graph, state, "either")
    strength = candidates.strength[candidates.spaces.ids["conv1", "out"]]
    assert strength.tolist() == pytest.approx([(3**2 + 4 * 2**2) ** 0.5, *[(1 + 4) ** 0.5] * 4])


def counts(plan: KeepPlan) -> dict[str, tuple[int, int]]:
    """For every space, how many channels stay of how many."""
    return {space.name: (int(plan.keep[space.channels].sum()), len(space.channels)) for space in plan.spaces.spaces}


def by_hand(removable_channels: list[int], strength: list[float]) -> Candidates:
    """Candidates of `chain`'s conv1 space, the channels 1 to 5."""
    spaces = find_spaces(chain())
    marked = np.zeros(spaces.num_channels, dtype=bool)
    marked[removable_channels] = True
    numbers = np.ones(spaces.num_channels)
    numbers[1:6] = strength
    return Candidates(spaces, marked, numbers, np.empty((0, 2), dtype=np.int64))


@pytest.mark.parametrize(
    ("granularity", "kept"),
    [
        (1, [1, 4]),
        (2, [1, 4]),
        (3, [0, 1, 4]),  # of 0, 2 and 3 the first is the strongest
        (4, [0, 1, 3, 4]),
        (8, [0, 1, 2, 3, 4]),  # no more than there are
    ],
)
def test_rounding_up_keeps_the_strongest(granularity: int, kept: list[int]) -> None:
    plan = make_plan(by_hand([1, 3, 4], [0.5, 0.1, 0.2, 0.4, 0.1]), granularity)
    assert plan.kept(("conv1", "out")).tolist() == kept
    assert counts(plan)["conv1"] == (len(kept), 5)
    assert counts(plan)["conv2"] == (4, 4)
    assert plan.rescued == ()


def test_among_equals_the_first_stay() -> None:
    assert make_plan(by_hand([1, 2, 3, 4, 5], [0] * 5), 2).kept(("conv1", "out")).tolist() == [0, 1]


@pytest.mark.parametrize(("granularity", "kept"), [(1, [2]), (2, [2, 4])])
def test_space_never_becomes_empty(granularity: int, kept: list[int]) -> None:
    plan = make_plan(by_hand([1, 2, 3, 4, 5], [0.1, 0.2, 0.9, 0.3, 0.4]), granularity)
    assert plan.kept(("conv1", "out")).tolist() == kept
    assert plan.rescued == ("conv1",)


def test_constant_goes_only_with_what_it_is_computed_from() -> None:
    """Channels 6 and 7 of conv2 are computed from channel 1 of conv1, which its rank keeps when two must stay."""
    candidates = by_hand([1, 2, 6, 7], [0.9, 0.1, 1, 1, 1])
    tied = Candidates(candidates.spaces, candidates.removable, candidates.strength, np.array([[6, 1], [7, 1]]))
    assert counts(make_plan(tied)) == counts(make_plan(candidates)) == {"input": (1, 1), "conv1": (3, 5), "conv2": (2, 4), "conv3": (2, 2)}
    assert counts(make_plan(candidates, 4))["conv2"] == (4, 4)  # rounded up in any case
    assert counts(make_plan(candidates, 2))["conv2"] == (2, 4)
    assert counts(make_plan(tied, 2))["conv2"] == (4, 4)


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.lists(st.floats(0, 1), min_size=12, max_size=12))
@settings(max_examples=100, derandomize=True)
def test_a_coarser_granularity_keeps_all_that_a_finer_one_keeps(marked: list[bool], strength: list[float]) -> None:
    spaces = find_spaces(chain())
    candidates = Candidates(spaces, np.array(marked) & ~spaces.frozen_channels(), np.array(strength), np.empty((0, 2), dtype=np.int64))
    plans = [make_plan(candidates, granularity) for granularity in (1, 2, 4, 8)]
    assert (plans[0].keep >= ~candidates.removable).all()
    for finer, coarser in itertools.pairwise(plans):
        assert (coarser.keep >= finer.keep).all()
    for granularity, plan in zip((1, 2, 4, 8), plans, strict=True):
        for kept, before in counts(plan).values():
            assert 1 <= kept <= before
            assert kept == before or kept % granularity == 0


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(layer_graphs(), st.integers(0, 1000), st.sampled_from(sorted(DAMAGES)))
@settings(max_examples=100, derandomize=True)
def test_either_cuts_all_that_union_cuts_and_nothing_frozen(graph: LayerGraph, seed: int, damage: str) -> None:
    state = new_state(graph, seed)
    DAMAGES[damage](graph, state, random.Random(seed))
    union, either = (propose_cut(graph, state, threshold=THRESHOLD, criterion=name) for name in ("union", "either"))
    assert union.graph == either.graph
    assert (either.candidates.removable >= union.candidates.removable).all()
    for proposal in (union, either):
        plan, spaces = proposal.plan(), proposal.candidates.spaces
        assert plan.keep[spaces.frozen_channels()].all()
        assert all(plan.keep[space.channels].any() for space in spaces.spaces)
        assert set(plan.rescued) <= {space.name for space in spaces.spaces if proposal.candidates.removable[space.channels].all()}
