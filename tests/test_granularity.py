"""`--round-to`: the pick by hand, how much is timed, and choices that are made once a run."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import settings, write_images

from prunetrain.channels.selection import KEEP_ALL, Granularity, most_common_granularity
from prunetrain.channels.slicing import Proposal, propose_cut
from prunetrain.errors import OutputError
from prunetrain.graph.costs import costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.paths import RunPaths, newest_run
from prunetrain.training import granularity, reconfiguration
from prunetrain.training.benchmarking.conditions import Conditions
from prunetrain.training.creation import new_state
from prunetrain.training.data import load_data
from prunetrain.training.environment import Environment
from prunetrain.training.events import Observer
from prunetrain.training.granularity import Effort, Timing, choose_granularity, measured_choice, pick_fastest
from prunetrain.training.run import resume_run, start_run
from prunetrain.training.state import TrainState

CPU = torch.device("cpu")
ENOUGH = {"epoch_seconds": 1e4, "images_per_second": 16.0}  # a line of history after which all can be timed


@pytest.mark.parametrize(
    ("timings", "chosen"),  # granularity, seconds, MACs
    [
        ([(1, 1.0, 100)], 1),
        ([(1, 1.0, 100), (8, 0.9, 120), (16, 0.8, 150)], 16),
        ([(1, 1.0, 100), (8, 0.6, 120), (16, 0.8, 150)], 8),
        ([(1, 0.82, 100), (8, 0.81, 120), (16, 0.8, 150)], 1),  # all within 3%: the fewest MACs
        ([(1, 0.83, 100), (8, 0.82, 120), (16, 0.8, 150)], 8),
        ([(1, 1.0, 100), (8, 0.9, 120), (KEEP_ALL, 0.8, 200)], KEEP_ALL),  # no cut is as fast as none
        ([(1, 0.82, 100), (8, 0.9, 120), (KEEP_ALL, 0.8, 200)], 1),
    ],
)
def test_pick_fastest(timings: list[tuple[int, float, int]], chosen: int) -> None:
    assert pick_fastest([Timing(*timing) for timing in timings]) == chosen
    assert pick_fastest([Timing(*timing) for timing in reversed(timings)]) == chosen


@pytest.mark.parametrize(
    ("steps", "effort"),
    [
        (1000.0, Effort(layers=True, networks=6, batch_size=128)),  # 24 steps for the layers and 6 networks of 4 steps
        (48.0, Effort(layers=True, networks=6, batch_size=128)),
        (24.0, Effort(layers=True, networks=6, batch_size=64)),
        (11.0, Effort(layers=True, networks=4, batch_size=35)),
        (6.0, Effort(layers=False, networks=4, batch_size=48)),
        (3.5, Effort(layers=False, networks=3, batch_size=37)),
        (2.9, None),
        (-5.0, None),
    ],
)
def test_what_there_is_time_for(steps: float, effort: Effort | None) -> None:
    assert granularity._effort(steps, 128, warmup=1) == effort


def test_rounds_of_warm_up_count() -> None:
    """24 steps for the layers and 6 networks of 3 rounds, and of 1 or 3 before them."""
    assert granularity._effort(48.0, 128, warmup=1) == Effort(layers=True, networks=6, batch_size=128)
    assert granularity._effort(48.0, 128, warmup=3) == Effort(layers=True, networks=6, batch_size=102)


def test_small_batches_stay_whole() -> None:
    assert granularity._effort(11.9, 16, warmup=1) is None
    assert granularity._effort(12.0, 16, warmup=1) == Effort(layers=False, networks=3, batch_size=16)


def test_most_common_granularity() -> None:
    assert most_common_granularity(8) == 8
    assert most_common_granularity({}) == most_common_granularity(KEEP_ALL) == 1
    assert most_common_granularity({"a": 1, "b": 16, "c": 16}) == 16
    assert most_common_granularity({"a": 1, "b": 16}) == 16


@pytest.fixture
def state(tmp_path: Path) -> TrainState:
    """A new run of LeNet-300-100 with `--round-to auto`."""
    config = settings(write_images(tmp_path / "images.npz"), tmp_path, round_to="auto", batch_size=16)
    state = new_state(config, RunPaths(tmp_path, "x"), load_data(config, CPU), Environment(CPU))
    state.progress = replace(state.progress, history=[ENOUGH])
    return state


def propose(state: TrainState, dead: int) -> Proposal:
    """What can be cut when the first `dead` of the 300 channels of fc1 are dead, and as many of the 100 of fc2."""
    weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    for layer in ("fc1", "fc2"):
        weights[f"{layer}.weight"][:dead] = 0
        weights[f"{layer}.bias"][:dead] = 0
    return propose_cut(state.graph, weights, threshold=1e-4, criterion="either")


class Chooser:
    """Stands in for the measurement: takes note of what it is asked, and answers one after the other."""

    def __init__(self, *answers: Granularity) -> None:
        self.answers = list(answers)
        self.asked: list[Effort] = []
        self.most_macs: list[float] = []

    def __call__(self, proposal: Proposal, conditions: Conditions, effort: Effort, *, layers_until: float, most_macs: float) -> Granularity:
        self.asked.append(effort)
        self.most_macs.append(most_macs)
        return self.answers[len(self.asked) - 1]


@pytest.fixture
def chooser(monkeypatch: pytest.MonkeyPatch) -> Chooser:
    chooser = Chooser({"fc1": 16}, 8, 4, 2)
    monkeypatch.setattr(granularity, "measured_choice", chooser)
    return chooser


def notes(state: TrainState) -> Any:
    return json.loads((state.run.checkpoints / "timings.json").read_text())


def test_fixed_multiple_needs_no_timing(state: TrainState, chooser: Chooser) -> None:
    proposal = propose(state, 37)
    state.config = replace(state.config, round_to="8")
    assert choose_granularity(state, proposal) == 8
    counts = {name: kept for name, (kept, _) in proposal.plan(8).counts().items()}
    assert (counts["fc1"], counts["fc2"]) == (264, 64)  # 263 and 63 live
    assert not (state.run.checkpoints / "timings.json").exists()


def test_a_multiple_for_each_space(state: TrainState) -> None:
    counts = propose(state, 37).plan({"fc2": 16, "elsewhere": 3}).counts()
    assert (counts["fc1"][0], counts["fc2"][0]) == (263, 64)


def test_nothing_to_cut_needs_no_timing(state: TrainState, chooser: Chooser) -> None:
    assert choose_granularity(state, propose(state, 0)) == 1
    assert chooser.asked == []


def test_choices_are_made_once_a_run(state: TrainState, chooser: Chooser) -> None:
    assert choose_granularity(state, propose(state, 37)) == {"fc1": 16}
    assert choose_granularity(state, propose(state, 37)) == {"fc1": 16}
    assert len(chooser.asked) == 1
    assert choose_granularity(state, propose(state, 50)) == 8
    assert choose_granularity(state, propose(state, 37)) == {"fc1": 16}
    assert len(chooser.asked) == 2
    assert list(notes(state)["choices"].values()) == [{"fc1": 16}, 8]


def test_other_settings_are_chosen_for_anew(state: TrainState, chooser: Chooser) -> None:
    proposal = propose(state, 37)
    for changes in ({}, {"amp": "bfloat16"}, {"channels_last": True}, {"batch_size": 8}):
        state.config = replace(state.config, **changes)
        choose_granularity(state, proposal)
    assert len(chooser.asked) == 4


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "b"}', '{"spent_seconds": 0, "choices": {"a": 0}}', "\x00"])
def test_damaged_notes_are_taken_anew(state: TrainState, chooser: Chooser, content: str) -> None:
    (state.run.checkpoints / "timings.json").write_text(content)
    assert choose_granularity(state, propose(state, 37)) == {"fc1": 16}
    assert len(chooser.asked) == 1


def test_notes_that_cannot_be_kept_do_no_harm(state: TrainState, chooser: Chooser) -> None:
    (state.run.checkpoints / "timings.json").mkdir()
    assert choose_granularity(state, propose(state, 37)) == {"fc1": 16}


def test_a_hundredth_of_the_run_may_go_to_timing(state: TrainState, chooser: Chooser) -> None:
    """4 epochs of 25 s, steps of 0.01 s: of the one second that is a hundredth, half for each reconfiguration, 50 steps."""
    state.progress = replace(state.progress, history=[{"epoch_seconds": 25.0, "images_per_second": 1600.0}])
    choose_granularity(state, propose(state, 37))
    (state.run.checkpoints / "timings.json").write_text(json.dumps({"spent_seconds": 0.5, "choices": {}}))
    choose_granularity(state, propose(state, 37))  # 25 steps
    (state.run.checkpoints / "timings.json").write_text(json.dumps({"spent_seconds": 1.1, "choices": {"x": {"fc2": 4}}}))
    assert choose_granularity(state, propose(state, 37)) == {"fc2": 4}  # the last choice
    assert chooser.asked == [Effort(True, 6, 16), Effort(False, 4, 16)]


def test_without_time_for_anything_nothing_is_rounded(state: TrainState, chooser: Chooser) -> None:
    for history in ([], [{"epoch_seconds": 0.1, "images_per_second": 1600.0}]):
        state.progress = replace(state.progress, history=history)
        assert choose_granularity(state, propose(state, 37 + len(history))) == 1
    assert chooser.asked == []


def test_a_run_that_died_while_cutting_cuts_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network file cannot be written once; the choice before it stands, whatever timing would say the second time."""
    monkeypatch.setattr(granularity, "_effort", lambda steps, batch_size, warmup: Effort(False, 3, batch_size))
    images = write_images(tmp_path / "images.npz")
    undisturbed = Chooser(8, 16)
    monkeypatch.setattr(granularity, "measured_choice", undisturbed)
    expected = start_run(settings(images, tmp_path / "a", round_to="auto"), Observer())
    died = Chooser(8, 16, 1)
    monkeypatch.setattr(granularity, "measured_choice", died)
    with monkeypatch.context() as broken:
        broken.setattr(reconfiguration, "write_pair", no_room)
        with pytest.raises(OutputError, match="the disk is full"):
            start_run(settings(images, tmp_path / "b", round_to="auto"), Observer())
    last = newest_run(tmp_path / "b", expected.run.name)
    assert last
    outcome = resume_run(last.last, {}, Observer())
    assert len(died.asked) == len(undisturbed.asked) == 2
    assert outcome.network.read_text() == expected.network.read_text()


def no_room(*args: object) -> None:
    """Stands in for writing a network."""
    raise OutputError("the disk is full")


class Clock:
    """Stands in for whole steps: takes note of the networks, and says how long each takes by the outputs of fc1."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self.seconds = seconds
        self.asked: list[int] = []
        self.batch_size = 0

    def __call__(self, graphs: list[LayerGraph], conditions: Conditions) -> list[float]:
        self.asked = [graph.layers[0]["out_features"] for graph in graphs]
        self.batch_size = conditions.batch_size
        return [self.seconds.get(count, 1.0) for count in self.asked]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [({}, 1), ({272: 0.5}, 16), ({300: 0.5}, KEEP_ALL), ({280: 0.5}, {"fc1": 8, "fc2": 8}), ({280: 0.98, 272: 0.99}, 1)],
)
def test_the_fastest_whole_network_wins(
    state: TrainState, monkeypatch: pytest.MonkeyPatch, seconds: Mapping[int, float], chosen: Granularity
) -> None:
    """263 channels of fc1 live, or 273; the choice by layers, 280, comes first where there is time for it."""
    clock = Clock(seconds)
    monkeypatch.setattr(granularity, "_time_steps", clock)
    monkeypatch.setattr(granularity, "choose_by_layer", lambda *args, **named: {"fc1": 8, "fc2": 8})
    proposal = propose(state, 27 if 280 in seconds else 37)
    conditions = Conditions.of(state.config, CPU)
    assert measured_choice(proposal, conditions, Effort(layers=280 in seconds, networks=4, batch_size=4)) == chosen
    assert clock.asked == ([280, 273, 300, 288] if 280 in seconds else [263, 300, 272, 264])
    assert clock.batch_size == 4


@pytest.mark.parametrize(("most", "asked"), [(288, [273, 288, 280]), (280, [273, 280]), (279, []), (0, [])])
def test_networks_with_too_many_macs_are_left_out(state: TrainState, monkeypatch: pytest.MonkeyPatch, most: int, asked: list[int]) -> None:
    """273 channels of fc1 live; 280 and 288 are the next multiples of 8 and 16. Of one network alone nothing is timed."""
    clock = Clock({300: 0.1})
    monkeypatch.setattr(granularity, "_time_steps", clock)
    proposal = propose(state, 27)
    counted = {0: 0} | {channels: granularity._macs(proposal, multiple) for channels, multiple in ((280, 8), (288, 16))}
    most_macs = counted.get(most, counted[280] - 1)
    chosen = measured_choice(
        proposal, Conditions.of(state.config, CPU), Effort(layers=False, networks=4, batch_size=4), most_macs=most_macs
    )
    assert (chosen, clock.asked) == (1, asked)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")])
def test_a_gpu_without_room_for_timing_takes_the_last_choice(state: TrainState, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*args: object, **kwargs: object) -> Granularity:
        raise error

    monkeypatch.setattr(granularity, "measured_choice", Chooser(8))
    assert choose_granularity(state, propose(state, 40)) == 8
    monkeypatch.setattr(granularity, "measured_choice", full)
    assert choose_granularity(state, propose(state, 50)) == 8
    assert list(notes(state)["choices"].values()) == [8, 8]


def test_where_all_choices_lead_to_one_network_nothing_is_timed(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granularity, "choose_by_layer", no_room)
    monkeypatch.setattr(granularity, "_time_steps", no_room)
    proposal = propose(state, 44)  # 256 of 300 and 56 of 100 are left, multiples of 8
    smallest = proposal.graph_for(proposal.plan(1))
    assert proposal.graph_for(proposal.plan(8)) == smallest
    assert measured_choice(proposal, Conditions(CPU, 16), Effort(True, 6, 16), most_macs=costs(smallest).macs) == 1


def test_the_target_goes_before_the_last_choice(state: TrainState, chooser: Chooser) -> None:
    """All MACs are allowed in the first interval, and the target's in the last of the two; there is no time to measure anew then."""
    dense = costs(state.dense).macs
    state.config = replace(state.config, epochs=2, target_macs=0.5, target_by=1.0, prune_interval=1)
    state.progress = replace(state.progress, epoch=1, lasso_strength=1.0)
    chooser.answers = [KEEP_ALL]
    assert choose_granularity(state, propose(state, 10)) == KEEP_ALL
    state.progress = replace(state.progress, epoch=2, history=[])
    assert choose_granularity(state, propose(state, 20)) == 1
    state.progress = replace(state.progress, lasso_strength=0.0)
    assert choose_granularity(state, propose(state, 30)) == 1  # the last choice
    assert chooser.most_macs == [dense]


def test_real_timing(state: TrainState) -> None:
    random = torch.get_rng_state()
    chosen = choose_granularity(state, propose(state, 37))
    assert isinstance(chosen, int | dict)
    assert torch.equal(torch.get_rng_state(), random)
    assert notes(state)["spent_seconds"] > 0
    assert list(notes(state)["choices"].values()) == [chosen]
