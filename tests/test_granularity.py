"""`--round-to`: the pick by hand, fixed multiples, and timings that are taken once a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import settings, write_images

from prunetrain.channels.slicing import Proposal, propose_cut
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.paths import RunPaths
from prunetrain.training import granularity
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment
from prunetrain.training.granularity import Timing, choose_granularity, pick
from prunetrain.training.state import TrainState, new_state

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("timings", "chosen"),  # granularity, seconds, MACs
    [
        ([(1, 1.0, 100)], 1),
        ([(1, 1.0, 100), (8, 0.9, 120), (16, 0.8, 150)], 16),
        ([(1, 1.0, 100), (8, 0.6, 120), (16, 0.8, 150)], 8),
        ([(1, 0.82, 100), (8, 0.81, 120), (16, 0.8, 150)], 1),  # all within 3%: the fewest MACs
        ([(1, 0.83, 100), (8, 0.82, 120), (16, 0.8, 150)], 8),
    ],
)
def test_pick(timings: list[tuple[int, float, int]], chosen: int) -> None:
    assert pick([Timing(*timing) for timing in timings]) == chosen
    assert pick([Timing(*timing) for timing in reversed(timings)]) == chosen


@pytest.fixture
def state(tmp_path: Path) -> TrainState:
    """A new run of LeNet-300-100 with `--round-to auto`."""
    config = settings(write_images(tmp_path / "images.npz"), tmp_path, round_to="auto", batch_size=16)
    return new_state(config, RunPaths(tmp_path, "x"), load_data(config, CPU), Environment(CPU))


def propose(state: TrainState, dead: int) -> Proposal:
    """What can be cut when the first `dead` of the 300 channels of fc1 are dead, and as many of the 100 of fc2."""
    weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    for layer in ("fc1", "fc2"):
        weights[f"{layer}.weight"][:dead] = 0
        weights[f"{layer}.bias"][:dead] = 0
    return propose_cut(state.graph, weights, threshold=1e-4, criterion="either")


class Clock:
    """Stands in for the measurement: takes note of the graphs it is asked for, and says which is fast."""

    def __init__(self, fastest: int) -> None:
        self.fastest = fastest
        self.asked: list[list[LayerGraph]] = []

    def __call__(self, state: TrainState, graphs: list[LayerGraph], budget_seconds: float) -> list[float]:
        self.asked.append(graphs)
        return [0.5 if number == self.fastest else 1.0 for number in range(len(graphs))]


def test_fixed_multiple_needs_no_timing(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granularity, "_measure", Clock(0))
    proposal = propose(state, 37)
    state.config = replace(state.config, round_to="8")
    assert choose_granularity(state, proposal, 1.0) == 8
    counts = {name: kept for name, (kept, _) in proposal.plan(8).counts().items()}
    assert (counts["fc1"], counts["fc2"]) == (264, 64)  # 263 and 63 live
    assert not (state.run.checkpoints / "timings.json").exists()


def test_nothing_to_cut_needs_no_timing(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0)
    monkeypatch.setattr(granularity, "_measure", clock)
    assert choose_granularity(state, propose(state, 0), 1.0) == 1
    assert clock.asked == []


def test_networks_are_timed_once_a_run(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(fastest=2)
    monkeypatch.setattr(granularity, "_measure", clock)
    proposal = propose(state, 37)
    assert choose_granularity(state, proposal, 1.0) == 16
    clock.fastest = 0
    assert choose_granularity(state, proposal, 1.0) == 16
    assert len(clock.asked) == 1
    (timed,) = clock.asked
    # 263 and 63 channels live; multiples of 2, 4 and 8 lead to one network, and 64 to all 300
    assert [graph.layers[0]["out_features"] for graph in timed] == [263, 264, 272, 288, 300]
    assert [graph.layers[1]["out_features"] for graph in timed] == [63, 64, 64, 64, 64]
    assert choose_granularity(state, propose(state, 50), 1.0) == 1  # other networks
    assert len(clock.asked) == 2
    assert len(json.loads((state.run.checkpoints / "timings.json").read_text())) == len({*timed, *clock.asked[1]})


def test_other_settings_are_timed_anew(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(fastest=0)
    monkeypatch.setattr(granularity, "_measure", clock)
    proposal = propose(state, 37)
    for changes in ({}, {"amp": "bfloat16"}, {"channels_last": True}, {"batch_size": 8}):
        state.config = replace(state.config, **changes)
        choose_granularity(state, proposal, 1.0)
    assert len(clock.asked) == 4


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "b"}', "\x00"])
def test_damaged_timings_are_taken_anew(state: TrainState, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    clock = Clock(fastest=1)
    monkeypatch.setattr(granularity, "_measure", clock)
    (state.run.checkpoints / "timings.json").write_text(content)
    assert choose_granularity(state, propose(state, 37), 1.0) == 2
    assert len(clock.asked) == 1


def test_timings_that_cannot_be_kept_do_no_harm(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granularity, "_measure", Clock(fastest=1))
    (state.run.checkpoints / "timings.json").mkdir()
    assert choose_granularity(state, propose(state, 37), 1.0) == 2


def test_real_timing(state: TrainState) -> None:
    assert choose_granularity(state, propose(state, 37), 0.2) in (1, 2, 16, 32, 64)
    seconds = json.loads((state.run.checkpoints / "timings.json").read_text()).values()
    assert len(seconds) == 5
    assert all(0 < number < 1 for number in seconds)
