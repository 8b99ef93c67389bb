"""The course of lambda over a run: released, steered to a target, and the same after a resume."""

from pathlib import Path
from typing import Any

import pytest
from runs import Recorder, assert_same_state, repeatable, settings, write_images

from prunetrain.config import TrainConfig
from prunetrain.graph.costs import costs
from prunetrain.graph.load import read_graph
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.penalty import next_macs, next_strength, penalised_epochs
from prunetrain.training.run import Outcome, resume_run, start_run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")


def course(config: TrainConfig, macs_left: float = 1.0) -> list[float]:
    """Lambda in every epoch, from 1 on, with the MACs standing still."""
    strengths = [1.0]
    for epoch in range(1, config.epochs):
        strengths.append(next_strength(config, epoch, strengths[-1], macs_left))
    return strengths


@pytest.mark.parametrize(("until", "epochs"), [(1.0, 8), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_the_lasso_is_released(until: float, epochs: int) -> None:
    config = TrainConfig(epochs=8, penalty_until=until)
    assert penalised_epochs(config) == epochs
    assert course(config) == [1.0] * epochs + [0.0] * (8 - epochs)


def test_the_lasso_is_released_at_the_target() -> None:
    config = TrainConfig(epochs=8, target_macs=0.5, penalty_until=0.25)
    assert course(config, macs_left=0.51) == [1.0] * 8
    assert course(config, macs_left=0.5) == [1.0] + [0.0] * 7


@pytest.mark.parametrize(
    ("interval", "course"),
    [(1, {1: 0.8, 2: 0.6, 3: 0.4, 4: 0.2, 5: 0.2, 19: 0.2}), (2, {2: 1 - 0.8 * 2 / 3, 4: 0.2}), (5, {5: 0.2, 10: 0.2})],
)
def test_course_of_the_macs_by_hand(interval: int, course: dict[int, float]) -> None:
    """From 1 to 0.2 in the first 5 of 20 epochs, of which the first interval cuts nothing."""
    config = TrainConfig(epochs=20, penalty_until=0.25, target_macs=0.2, prune_interval=interval)
    assert {epoch: next_macs(config, epoch) for epoch in course} == pytest.approx(course)


def zero_strengths(outcome: Outcome) -> list[bool]:
    """For every epoch, whether it had no lasso."""
    return [line["lasso"] == 0 for line in outcome.history]


def test_a_released_run_cuts_at_the_release_and_then_only_trains(images: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = start_run(settings(images, tmp_path, epochs=6, prune_interval=2, penalty_until=0.5, penalty_ratio=0.94), recorder)
    assert [event.epoch for event in recorder.reconfigurations] == [2, 3, 6]
    assert zero_strengths(outcome) == [False] * 3 + [True] * 3
    assert outcome.history[3]["macs"] < outcome.history[2]["macs"]


@pytest.mark.parametrize("changes", [{}, {"model": "resnet20"}, {"lasso_groups": "slices", "lasso_step": "subgradient"}], ids=str)
def test_a_target_is_met_on_time_and_every_cut_is_free(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """A quarter of the MACs by the end of epoch 4 of 6, with a lasso that alone would cut nothing."""
    recorder = Recorder()
    config = settings(images, tmp_path, epochs=6, prune_interval=1, penalty_ratio=0.1, penalty_until=0.67, target_macs=0.25, **changes)
    outcome = start_run(config, recorder)
    left = [line["macs"] / outcome.history[0]["macs"] for line in outcome.history]
    assert left == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0.25], abs=0.02)
    assert left[4] <= 0.25
    assert zero_strengths(outcome) == [False] * 4 + [True] * 2
    assert [event.epoch for event in recorder.reconfigurations] == [1, 2, 3, 4, 6]
    assert all(before == after for before, after in (event.val_top1 for event in recorder.reconfigurations))


@pytest.mark.parametrize("stop", [(2, 10), (3, 1), (3, 6), (4, 10), (5, 4)], ids=str)
def test_the_course_resumes(images: Path, tmp_path: Path, stop: tuple[int, int]) -> None:
    changes: dict[str, Any] = {"epochs": 6, "penalty_ratio": 0.1, "target_macs": 0.5, "penalty_until": 0.67}
    whole = start_run(settings(images, tmp_path / "whole", **changes), Recorder())
    parts = start_run(settings(images, tmp_path / "parts", **changes), Recorder(stop))
    resumed = resume_run(parts.run.last, {}, Recorder())
    assert_same_state(load_checkpoint(resumed.run.last), load_checkpoint(whole.run.last))
    assert repeatable(resumed.history) == repeatable(whole.history)


@pytest.mark.parametrize("changes", [{"penalty_ratio": 0.94}, {"penalty_ratio": 0.1, "target_macs": 0.5}], ids=str)
def test_the_course_goes_on_from_the_checkpoint_of_a_cut(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    outcome = start_run(settings(images, tmp_path, epochs=6, prune_interval=1, penalty_until=0.5, **changes), Recorder())
    last = load_checkpoint(outcome.run.last)
    again = resume_run(outcome.run.checkpoint(2), {}, Recorder())
    assert_same_state(load_checkpoint(again.run.last), last)
    assert repeatable(again.history) == repeatable(outcome.history)


def test_a_resumed_run_may_have_another_interval(images: Path, tmp_path: Path) -> None:
    """The channels that were fading are of the network before the cut."""
    changes: dict[str, Any] = {"epochs": 6, "prune_interval": 1, "penalty_ratio": 0.1, "target_macs": 0.5, "penalty_until": 0.67}
    outcome = start_run(settings(images, tmp_path, **changes), Recorder((3, 10)))
    assert load_checkpoint(outcome.run.last).progress.fading == []
    resumed = resume_run(outcome.run.last, {"prune_interval": 2}, Recorder())
    assert costs(read_graph(resumed.network)).macs <= 0.5 * resumed.history[0]["macs"]
