"""`--dynamic-batch`: the choice by hand, what a run makes of it, and that it resumes bit for bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Recorder, arguments, assert_same_state, invoke, repeatable, settings, write_images

from prunetrain.config import TrainConfig
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.paths import RunPaths
from prunetrain.training import batch_size as batch_size_module
from prunetrain.training import evaluation
from prunetrain.training.batch_size import choose_batch_size, largest_batch, upper_limit
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.creation import new_state
from prunetrain.training.data import DataSource, load_data
from prunetrain.training.environment import Environment
from prunetrain.training.evaluation import evaluate_checkpoint
from prunetrain.training.events import BatchChange, Metrics, Reconfiguration
from prunetrain.training.loop import Evaluation, GuessCallback, evaluate
from prunetrain.training.offline_reconfiguration import reconfigure_checkpoint
from prunetrain.training.pairs import read_pair
from prunetrain.training.run import Outcome, resume_run, start_run
from prunetrain.training.state import TrainState, load_state

CPU = torch.device("cpu")
GROWING = {"batch_size": 8, "dynamic_batch": True, "max_batch_size": 48, "warmup_epochs": 1, "schedule": "cosine", "lr": 0.05}


@pytest.mark.parametrize(
    ("present", "step", "limit", "room", "expected"),  # from a start of 64
    [
        (64, 32, 512, 200, 192),
        (64, 32, 512, 192, 192),
        (64, 32, 512, 191, 160),
        (64, 32, 512, 64, 64),
        (64, 32, 512, 0, 64),  # never smaller
        (64, 32, 512, 9999, 512),
        (64, 32, 500, 9999, 480),
        (64, 32, 60, 9999, 64),
        (160, 32, 512, 100, 160),
        (160, 32, 512, 200, 192),
        (160, 32, 160, 9999, 160),
        (160, 32, 128, 9999, 160),  # over a limit that came later
        (64, 128, 512, 9999, 448),  # 4 workers
        (64, 128, 512, 191, 64),
        (100, 128, 512, 9999, 448),  # with another number of workers before
    ],
)
def test_largest_batch(present: int, step: int, limit: int, room: int, expected: int) -> None:
    assert largest_batch(present=present, start=64, step=step, limit=limit, fits=lambda size: size <= room) == expected


@pytest.mark.parametrize(
    ("changes", "num_train", "limit"),
    [
        ({"batch_size": 32}, 50_000, 128),
        ({"batch_size": 32, "max_batch_size": 500}, 50_000, 500),
        ({"batch_size": 32}, 1000, 100),
        ({"batch_size": 32, "max_batch_size": 500}, 1000, 100),
    ],
)
def test_upper_limit(changes: dict[str, int], num_train: int, limit: int) -> None:
    assert upper_limit(TrainConfig(**changes), num_train) == limit  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images.npz", train=480)


class Workers:
    """Stands in for four processes."""

    world_size = 4


def start(images: Path, folder: Path, **changes: Any) -> tuple[TrainState, Callable[[LayerGraph], BatchChange]]:
    """A new run, and the choice of its batch after a cut to a graph."""
    config = settings(images, folder, **{"dynamic_batch": True, **changes})
    data = load_data(config, CPU)
    state = new_state(config, RunPaths(folder, "x"), data, Environment(CPU))
    return state, lambda graph: choose_batch_size(state, graph, data)


def test_choice_by_hand(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense network takes 1000 + 10 bytes an image, the smaller one 400 + 4."""
    state, choose = start(images, tmp_path, batch_size=16, max_batch_size=1000)
    smaller = replace(state.graph, class_name="Smaller")
    asked: list[tuple[bool, int]] = []

    def memory(state: TrainState, graph: LayerGraph, images: int) -> float:
        asked.append((graph is smaller, images))
        return 400 + 4 * images if graph is smaller else 1000 + 10 * images

    monkeypatch.setattr(batch_size_module, "step_memory", memory)
    monkeypatch.setattr(batch_size_module, "_MIN_STEPS", 1)
    change = choose(smaller)  # budget 1160: (1160 - 400) / 4 = 190
    assert change == BatchChange((16, 176), (1160, 1104), 1160, measured=False, steps_per_epoch=2, largest=False)
    assert len(asked) == len(set(asked))  # nothing is tried twice
    assert choose(state.graph).batch_size == (16, 16)
    state.progress = replace(state.progress, batch_size=80)
    assert choose(state.graph) == BatchChange((80, 80), (1800, 1800), 1160, measured=False, steps_per_epoch=6, largest=False)
    assert choose(smaller).batch_size == (80, 176)
    monkeypatch.setattr(batch_size_module, "available_memory", lambda state: 900.0)  # (900 - 400) / 4 = 125
    assert choose(smaller) == BatchChange((80, 112), (1800, 848), 900, measured=False, steps_per_epoch=4, largest=False)
    state.config = replace(state.config, max_batch_size=111)
    assert choose(smaller) == BatchChange((80, 80), (1800, 720), 900, measured=False, steps_per_epoch=6, largest=True)
    state.config = replace(state.config, max_batch_size=112)
    assert (choose(smaller).batch_size, choose(smaller).largest) == ((80, 112), True)
    state.config = replace(state.config, max_batch_size=1000)
    state.environment = Environment(CPU, Workers())  # type: ignore[arg-type]
    state.progress = replace(state.progress, batch_size=None)
    asked.clear()
    assert choose(smaller).batch_size == (16, 400)  # 100 images each, as 132 are too many
    assert asked[0] == (False, 4)


@pytest.fixture(scope="module")
def grown(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[Reconfiguration]]:
    """LeNet-300-100, 4 epochs, cut after the second and the fourth."""
    recorder = Recorder()
    return start_run(settings(images, tmp_path_factory.mktemp("grown"), **GROWING), recorder), recorder.reconfigurations


def test_batch_and_learning_rate_grow_after_the_cut(grown: tuple[Outcome, list[Reconfiguration]], images: Path) -> None:
    outcome, (first, second) = grown
    assert first.batch is not None and second.batch is not None
    assert (first.batch.batch_size, second.batch.batch_size) == ((8, 40), (40, 40))  # 72 would be over the limit
    assert first.batch.memory[1] <= first.batch.budget == first.batch.memory[0]
    assert second.batch.memory[0] == first.batch.memory[1]
    assert first.batch.steps_per_epoch == 12
    assert [line["batch_size"] for line in outcome.history] == [8, 8, 40, 40]
    assert [line["train_images_total"] for line in outcome.history] == [480, 960, 1440, 1920]
    # Warm-up over the first epoch, then the half wave over the other three: a third of it done, two thirds, all of it.
    assert [line["lr"] for line in outcome.history] == pytest.approx([0.05, 0.05 * 0.75, 5 * 0.05 * 0.25, 0.0], abs=1e-12)
    assert [load_checkpoint(outcome.run.checkpoint(epoch)).progress.batch_size for epoch in (0, 2, 4)] == [None, 40, 40]
    config = TrainConfig(**load_checkpoint(outcome.run.last).config)
    state = load_state(read_pair(outcome.run.checkpoint(2)), config, load_data(config, CPU), Environment(CPU))
    assert (state.batch_size, state.scheduler.last_epoch) == (40, 24)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(5 * 0.05 * 0.75)
    assert state.optimizer.param_groups[0]["weight_decay"] == config.weight_decay


def test_without_the_flag_nothing_grows(images: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = start_run(settings(images, tmp_path, **{**GROWING, "dynamic_batch": False}), recorder)
    assert [event.batch for event in recorder.reconfigurations] == [None, None]
    assert [line["batch_size"] for line in outcome.history] == [8] * 4


@pytest.mark.parametrize("stops", [[(2, 60)], [(3, 1)], [(3, 12)], [(1, 3), (3, 7), (4, 11)]], ids=str)
def test_resume_in_the_middle_of_and_after_growth(
    images: Path, tmp_path: Path, grown: tuple[Outcome, list[Reconfiguration]], stops: list[tuple[int, int]]
) -> None:
    reference = grown[0].run
    outcome = start_run(settings(images, tmp_path, **GROWING), Recorder(stops[0]))
    for following in [*stops[1:], None]:
        assert not outcome.finished
        outcome = resume_run(outcome.run.last, {}, Recorder(following))
    for epoch in (2, 4):
        assert_same_state(load_checkpoint(outcome.run.checkpoint(epoch)), load_checkpoint(reference.checkpoint(epoch)))
        assert outcome.run.network(epoch).read_bytes() == reference.network(epoch).read_bytes()
    assert_same_state(load_checkpoint(outcome.run.last), load_checkpoint(reference.last))
    assert metrics_of(outcome.run) == metrics_of(reference)


def metrics_of(run: RunPaths) -> list[Metrics]:
    return repeatable([json.loads(line) for line in run.metrics.read_text().splitlines()])


def test_growing_and_its_limit_can_change_when_a_run_is_resumed(images: Path, tmp_path: Path) -> None:
    stopped = start_run(settings(images, tmp_path, **GROWING), Recorder((3, 5)))
    kept = resume_run(stopped.run.last, {"dynamic_batch": False, "max_batch_size": 0}, Recorder())
    assert [line["batch_size"] for line in kept.history] == [8, 8, 40, 40]  # what has grown stays
    recorder = Recorder()
    resume_run(stopped.run.checkpoint(2), {"max_batch_size": 1000, "prune_interval": 1}, recorder)
    assert recorder.metrics[-1]["batch_size"] == 40
    first = start_run(settings(images, tmp_path, **{**GROWING, "dynamic_batch": False, "epochs": 2}), Recorder())
    recorder = Recorder()
    resume_run(first.run.last, {"dynamic_batch": True, "epochs": 4, "prune_interval": 1}, recorder)
    assert [line["batch_size"] for line in recorder.metrics] == [8, 40]


def test_offline_cut_and_evaluation_of_a_grown_run(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = start_run(settings(images, tmp_path, **GROWING), Recorder((3, 5)))
    done = reconfigure_checkpoint(stopped.run.last, {}, granularity=1)
    assert load_checkpoint(done.checkpoint).progress.batch_size == 40
    assert resume_run(done.checkpoint, {}, Recorder()).finished
    used: list[int] = []

    def noted(state: TrainState, data: DataSource, on_guesses: GuessCallback | None) -> Evaluation:
        used.append(state.batch_size)
        return evaluate(state, data, on_guesses)

    monkeypatch.setattr(evaluation, "evaluate", noted)
    few, many = evaluate_checkpoint(done.checkpoint, {"batch_size": 4}), evaluate_checkpoint(done.checkpoint, {})
    assert (few.top1, few.top5, few.loss) == (many.top1, many.top5, pytest.approx(many.loss))
    assert used == [4, 40]


def test_command_line(images: Path, tmp_path: Path) -> None:
    result = invoke(*arguments(settings(images, tmp_path, **{**GROWING, "dynamic_batch": False})), "--dynamic-batch")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "  batch 8 -> 40, learning rate x5 (estimated " in result.stdout
    result = invoke("train", "--dynamic-batch", "--max-batch-size", "16")
    assert (result.exit_code, result.stderr) == (2, "error: max-batch-size 16 is below the initial batch size, 32\n")
