"""A crash at any instant loses nothing: after every single operation on the disk, and of real processes at random moments."""

import multiprocessing
import os
import random
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from disk_film import Film, Instant
from runs import Recorder, arguments, assert_same_run, invoke, settings, write_images

from prunetrain.config import TrainConfig
from prunetrain.files import append_line
from prunetrain.library.prune import prune
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import load_checkpoint, save_checkpoint
from prunetrain.training.run import resume_run, start_run

TOP = Path(__file__).parent.parent
NAME = "x"
# Two epochs of two steps, a checkpoint after every step, a cut after every epoch; a threshold that leaves something to cut both times.
TINY = {"epochs": 2, "prune_interval": 1, "threshold": 0.08, "checkpoint_minutes": 1e-9, "keep": 2, "name": NAME}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images.npz", train=64, val=32)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Film]:
    """A run without a crash, filmed."""
    folder, recorder = tmp_path_factory.mktemp("whole"), Recorder()
    config, film = settings(images, folder, **TINY), Film(folder)
    with film.recording():
        start_run(config, recorder)
    assert all(event.change.channels[1] < event.change.channels[0] for event in recorder.reconfigurations)
    return config, film


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing takes most of the time of so small a run, and only a lack of power shows it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def go_on(instant: Instant, config: TrainConfig, folder: Path) -> RunPaths:
    """Resume what a crash left, to the end."""
    folder.mkdir()
    instant.write(folder)
    result = invoke(*arguments(config), "--output-dir", folder, "--resume", "auto")
    assert (result.exit_code, result.stderr) == (0, ""), f"{instant.when}: {result.output}"
    assert sorted(path.name for path in folder.glob("*/*")) == [NAME, NAME], instant.when
    return RunPaths(folder, NAME)


def test_everything_is_on_the_disk_when_a_run_has_ended(whole: tuple[TrainConfig, Film]) -> None:
    _, film = whole
    present, lasting = film.present(), film.lasting()
    assert {name: lasting.get(name) for name in present} == present  # and what was removed may come back, until it is removed again


@pytest.mark.usefixtures("no_sync")
def test_a_crash_at_every_operation_of_a_run(whole: tuple[TrainConfig, Film], tmp_path: Path) -> None:
    config, film = whole
    assert len(film.instants) > 70
    for number, instant in enumerate(film.instants.values()):
        assert_same_run(go_on(instant, config, tmp_path / str(number)), RunPaths(film.folder, NAME))


@pytest.mark.usefixtures("no_sync")
def test_a_crash_at_every_operation_of_going_back(whole: tuple[TrainConfig, Film], tmp_path: Path) -> None:
    """To an earlier checkpoint, which removes what came after it: the run goes on from there or from where it was, never from a mixture."""
    config, film = whole
    again = Film(tmp_path / "again")
    shutil.copytree(film.folder, again.folder)
    again.assume_synced()
    with again.recording():
        resume_run(RunPaths(again.folder, NAME).checkpoint(1), {}, Recorder())
    assert len(again.instants) > 30
    for number, instant in enumerate(again.instants.values()):
        assert_same_run(go_on(instant, config, tmp_path / str(number)), RunPaths(film.folder, NAME))


@pytest.mark.usefixtures("no_sync")
def test_a_crash_at_every_operation_of_a_run_that_prunes_another(whole: tuple[TrainConfig, Film], tmp_path: Path) -> None:
    """Whose first files are three: the other's dense network among them."""
    _, other = whole
    film = Film(tmp_path / "whole")
    film.folder.mkdir()

    def pruned(folder: Path) -> RunPaths:
        changes = {"method": "magnitude", "rate": 0.5, "epochs": 1, "output_dir": str(folder), "name": NAME}
        return prune(RunPaths(other.folder, NAME).last, **changes, resume=True).run

    with film.recording():
        reference = pruned(film.folder)
    assert list(reference.network_files()) == [0, 2]
    assert len(film.instants) > 40
    for number, instant in enumerate(film.instants.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        instant.write(folder)
        assert_same_run(pruned(folder), reference)


@pytest.fixture
def crash_test(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/crash_test.py`, whose processes import it too."""
    monkeypatch.syspath_prepend(TOP / "benchmarks")
    monkeypatch.syspath_prepend(TOP)
    return import_module("crash_test")


def test_real_processes_killed_at_random(images: Path, tmp_path: Path, crash_test: ModuleType) -> None:
    """The short form of the benchmark; torch is loaded once, by the process that each killed one is forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_child", "prunetrain.training.run"])
    flags = arguments(settings(images, tmp_path, **TINY))[1:]
    place = flags.index("--output-dir")
    test = crash_test.CrashTest(tmp_path, flags[:place] + flags[place + 2 :], context, seed=random.randrange(2**32))
    seconds = test.left_alone()
    test.kill(5, seconds)
    assert (test.report.kills.total(), test.report.failures) == (5, []), test.report.table()


def test_the_comparison_finds_what_differs(whole: tuple[TrainConfig, Film], tmp_path: Path, crash_test: ModuleType) -> None:
    _, film = whole
    reference = RunPaths(film.folder, NAME)

    def differing(damage: Callable[[RunPaths], object]) -> list[str]:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(film.folder, tmp_path / "copy")
        run = RunPaths(tmp_path / "copy", NAME)
        damage(run)
        found: list[str] = crash_test.differences(run, reference)
        return found

    def nudge(run: RunPaths) -> None:
        checkpoint = load_checkpoint(run.last)
        momentum = checkpoint.optimizer["state"][0]["momentum_buffer"]
        momentum.view(-1)[0] = torch.nextafter(momentum.view(-1)[0], torch.tensor(9.0))
        save_checkpoint(run.last, checkpoint)

    assert differing(lambda run: None) == []
    assert differing(nudge) == ["optimizer in last.pt"]
    assert differing(lambda run: append_line(run.metrics, run.metrics.read_text().splitlines()[-1])) == ["metrics.jsonl"]
    assert differing(lambda run: run.network(1).write_text(run.network(1).read_text() + "#")) == ["epoch_001.py"]
    assert differing(lambda run: run.checkpoint(1).unlink())[0].startswith("files in checkpoints: ")
