"""Where a damaged run goes on: the newest whole pair of network file and checkpoint, with a line about each that is not."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Recorder, arguments, assert_same_run, invoke, settings
from torch import Tensor

from prunetrain.config import TrainConfig
from prunetrain.errors import BusyError, CheckpointError, DivergedError, NetworkFileError, OutputError
from prunetrain.locking import locked
from prunetrain.paths import RunPaths
from prunetrain.training import divergence, loop, run
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.recovery import find_newest_checkpoint, remove_old_checkpoints
from prunetrain.training.run import Outcome, continue_run, resume_run, start_run
from prunetrain.training.state import TrainState

TOP = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def reference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Four epochs of ten steps, cut after the second and the fourth."""
    return start_run(settings(images, tmp_path_factory.mktemp("reference"), name="x"), Recorder())


@pytest.fixture
def stopped(images: Path, tmp_path: Path) -> RunPaths:
    """The same run stopped in its fourth epoch: epoch_000 and epoch_002, and last.pt at epoch 3, step 5."""
    return start_run(settings(images, tmp_path, name="x"), Recorder((4, 5))).run


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edited(path: Path) -> None:
    path.write_text(path.read_text().replace("300", "301"))


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_weights(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["model"] = {name: tensor[:1] for name, tensor in content["model"].items()}
    torch.save(content, path)


Damage = tuple[str, Callable[[Path], None]]


@pytest.mark.parametrize(
    ("damages", "chosen", "skipped"),
    [
        ([], "last.pt", []),
        ([("last.pt", missing)], "epoch_002.pt", []),
        ([("last.pt", half)], "epoch_002.pt", ["skipped last.pt: damaged"]),
        ([("last.pt", empty)], "epoch_002.pt", ["skipped last.pt: damaged"]),
        ([("last.pt", other_weights)], "epoch_002.pt", ["skipped last.pt: "]),
        ([("epoch_002.py", edited)], "epoch_000.pt", ["skipped last.pt: ", "skipped epoch_002.pt: "]),
        ([("epoch_002.py", missing)], "epoch_000.pt", ["skipped last.pt: ", "skipped epoch_002.pt: "]),
        ([("epoch_002.py", half)], "epoch_000.pt", ["skipped last.pt: ", "skipped epoch_002.pt: "]),
        ([("last.pt", half), ("epoch_002.pt", half)], "epoch_000.pt", ["skipped last.pt: damaged", "skipped epoch_002.pt: damaged"]),
    ],
    ids=lambda value: ", ".join(f"{name} {how.__name__}" for name, how in value) if value and isinstance(value[0], tuple) else "",
)
def test_the_newest_whole_pair(
    images: Path, stopped: RunPaths, reference: Outcome, *, damages: list[Damage], chosen: str, skipped: list[str]
) -> None:
    for name, damage in damages:
        damage((stopped.networks if name.endswith(".py") else stopped.checkpoints) / name)
    said: list[str] = []
    assert find_newest_checkpoint(stopped, said.append) == stopped.checkpoints / chosen
    assert len(said) == len(skipped)
    assert all(line.startswith(start) for line, start in zip(said, skipped, strict=True)), said
    result = invoke(*arguments(settings(images, stopped.output_dir, name="x")), "--resume", "auto")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[: len(said) + 1] == [*said, f"resuming from {stopped.checkpoints / chosen}"]
    assert_same_run(stopped, reference.run)


def test_a_newer_numbered_checkpoint_is_taken_and_a_damaged_one_replaced(images: Path, stopped: RunPaths, reference: Outcome) -> None:
    for folder, files in ((stopped.networks, reference.run.network_files()), (stopped.checkpoints, reference.run.checkpoint_files())):
        shutil.copy(files[4], folder)
    assert find_newest_checkpoint(stopped, pytest.fail) == stopped.checkpoint(4)  # as after a kill between epoch_004.pt and last.pt
    half(stopped.checkpoint(4))
    said: list[str] = []
    assert find_newest_checkpoint(stopped, said.append) == stopped.last
    assert [line.partition(":")[0] for line in said] == ["skipped epoch_004.pt"]
    assert invoke(*arguments(settings(images, stopped.output_dir, name="x")), "--resume", "auto").exit_code == 0
    assert_same_run(stopped, reference.run)


def test_an_older_one_that_is_damaged_is_in_nobodys_way(stopped: RunPaths) -> None:
    half(stopped.checkpoint(2))
    assert find_newest_checkpoint(stopped, pytest.fail) == stopped.last
    assert continue_run(stopped, TrainConfig(), {}, Recorder()).finished


def test_what_came_after_goes(stopped: RunPaths, reference: Outcome) -> None:
    """Also where the run goes on in another way, and would not write these files again."""
    recorder = Said()
    outcome = resume_run(stopped.checkpoint(0), {"prune_interval": 3, "epochs": 3}, recorder)
    assert list(outcome.run.network_files()) == list(outcome.run.checkpoint_files()) == [0, 3]
    assert "removed epoch_002.pt, which came after epoch_000.pt" in recorder.said
    assert len(outcome.run.metrics.read_text().splitlines()) == 3


class Said(Recorder):
    """Also keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("damage", [half, missing, empty])
def test_nothing_whole_is_an_error_and_no_new_run(images: Path, stopped: RunPaths, damage: Callable[[Path], None]) -> None:
    for path in (stopped.last, *stopped.checkpoint_files().values()):
        damage(path)
    result = invoke(*arguments(settings(images, stopped.output_dir, name="x")), "--resume", "auto")
    line = f"error: {stopped.checkpoints} has no whole checkpoint to resume from: restore one, or start a new run with another --name\n"
    assert (result.exit_code, result.stderr) == (2, line)
    assert [path.name for path in (stopped.output_dir / "generated_nets").iterdir()] == ["x"]


@pytest.mark.parametrize("damage", [half, missing, empty])
def test_the_dense_network_is_needed(stopped: RunPaths, damage: Callable[[Path], None]) -> None:
    damage(stopped.network(0))
    with pytest.raises(NetworkFileError, match=r"epoch_000.py.*; it is the dense network, and every checkpoint of the run needs it: "):
        find_newest_checkpoint(stopped, pytest.fail)


@pytest.mark.parametrize("left", ["nothing", "a temporary file", "the network file", "an empty folder"])
def test_killed_while_it_was_created(images: Path, tmp_path: Path, reference: Outcome, left: str) -> None:
    run = RunPaths(tmp_path, "x")
    run.networks.mkdir(parents=True)
    if left == "a temporary file":
        (run.networks / ".epoch_000.py.0123abcd.tmp").write_text("half")
    if left == "the network file":
        (run.networks / "epoch_000.py").write_text("whole")
    if left == "an empty folder":
        run.checkpoints.mkdir(parents=True)
    assert invoke(*arguments(settings(images, tmp_path, name="x")), "--resume", "auto").exit_code == 0
    assert_same_run(run, reference.run)


def test_a_folder_means_the_newest_in_it(stopped: RunPaths, reference: Outcome) -> None:
    half(stopped.last)
    recorder = Said()
    outcome = resume_run(stopped.checkpoints, {}, recorder)
    assert recorder.said[1] == f"resuming from {stopped.checkpoint(2)}"
    assert_same_run(outcome.run, reference.run)


def test_a_folder_without_checkpoints(stopped: RunPaths) -> None:
    for path in (*stopped.checkpoint_files().values(), stopped.last, stopped.metrics, stopped.network(2)):
        path.unlink()
    with pytest.raises(CheckpointError, match="has no checkpoint: start the run again without --resume"):
        resume_run(stopped.checkpoints, {}, Recorder())


def test_a_path_means_that_file(stopped: RunPaths) -> None:
    half(stopped.last)
    with pytest.raises(CheckpointError, match=r"last.pt: damaged"):
        resume_run(stopped.last, {}, Recorder())
    assert stopped.checkpoint(2).exists()


@pytest.mark.parametrize(("keep", "left"), [(0, [0, 1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (9, [0, 1, 2, 3, 4])])
def test_keep(images: Path, tmp_path: Path, keep: int, left: list[int]) -> None:
    outcome = start_run(settings(images, tmp_path, prune_interval=1, keep=keep), Recorder())
    assert list(outcome.run.checkpoint_files()) == left
    assert list(outcome.run.network_files()) == [0, 1, 2, 3, 4]
    assert outcome.run.last.exists()


def test_keep_leaves_the_epochs_to_rewind_to(images: Path, tmp_path: Path) -> None:
    run = start_run(settings(images, tmp_path, prune_interval=2, epochs=6, keep=1, save_epochs=(1, 2, 3)), Recorder()).run
    assert list(run.checkpoint_files()) == [1, 2, 3, 6]
    resume_run(run.checkpoint(3), {}, Recorder())
    assert list(run.checkpoint_files()) == [1, 2, 3, 6]


def test_keep_can_change_and_removed_checkpoints_say_why(images: Path, tmp_path: Path, reference: Outcome) -> None:
    run = start_run(settings(images, tmp_path, name="x"), Recorder((3, 5))).run
    remove_old_checkpoints(run, 0, ())
    assert list(run.checkpoint_files()) == [0, 2]
    resume_run(run.last, {"keep": 1}, Recorder())
    assert list(run.checkpoint_files()) == [4]
    with pytest.raises(CheckpointError, match=r"epoch_002.pt: removed because of --keep; only its network file .*epoch_002.py is left"):
        load_checkpoint(run.checkpoint(2))
    with pytest.raises(CheckpointError, match=r"epoch_003.pt: no such checkpoint$"):
        load_checkpoint(run.checkpoint(3))


@contextmanager
def held_by_another_process(path: Path) -> Iterator[int]:
    """A process that has a lock, until it is killed at the end."""
    code = f"import time; from pathlib import Path; from prunetrain.locking import locked\nwith locked(Path({str(path)!r}), 'it'):\n"
    code += "    print('held', flush=True)\n    time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(TOP)}, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    try:
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_one_process_a_run(images: Path, stopped: RunPaths, reference: Outcome) -> None:
    lock = stopped.checkpoints.parent / ".x.lock"
    config = settings(images, stopped.output_dir, name="x")
    with held_by_another_process(lock) as holder:
        before = {path: path.read_bytes() for path in stopped.output_dir.rglob("*.*")}
        for action in (lambda: continue_run(stopped, config, {}, Recorder()), lambda: resume_run(stopped.last, {}, Recorder())):
            with pytest.raises(BusyError, match=rf"^run x is in use by process {holder} on .*: wait for it to end, or stop it first$"):
                action()
        assert {path: path.read_bytes() for path in stopped.output_dir.rglob("*.*")} == before
        assert start_run(settings(images, stopped.output_dir, name="x", epochs=1), Recorder()).run.name == "x-2"
    assert lock.exists()  # what a killed holder leaves is in nobody's way
    assert_same_run(continue_run(stopped, config, {}, Recorder()).run, reference.run)
    assert not lock.exists()


def test_a_name_that_another_process_is_about_to_take(images: Path, tmp_path: Path) -> None:
    with held_by_another_process(tmp_path / "checkpoints" / ".x.lock"):
        assert start_run(settings(images, tmp_path, name="x", epochs=1), Recorder()).run.name == "x-2"


def test_nobody_else_can_take_a_run_whose_first_files_are_there(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def begun(*args: Any, **named: Any) -> TrainState:
        state = new_state(*args, **named)
        code = f"from pathlib import Path; from prunetrain.locking import locked\nwith locked(Path({str(lock)!r}), 'it'): print('taken')"
        tried.append(subprocess.run([sys.executable, "-c", code], cwd=TOP, check=False, capture_output=True, text=True))
        return state

    lock, new_state = tmp_path / "checkpoints" / ".x.lock", run.new_state
    monkeypatch.setattr(run, "new_state", begun)
    assert start_run(settings(images, tmp_path, name="x", epochs=1), Recorder()).finished
    assert [(other.returncode, other.stdout) for other in tried] == [(1, "")]
    assert f"BusyError: it is in use by process {os.getpid()} on " in tried[0].stderr
    assert not lock.exists()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with locked(tmp_path / "lock", "it"):
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


class Breaking(Recorder):
    """Puts a value into a weight after a step."""

    def __init__(self, at: tuple[int, int], value: float, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.at, self.value = at, value
        step = loop._train_step

        def broken(state: TrainState, *args: Any) -> tuple[Tensor, Tensor]:
            result = step(state, *args)
            if (state.progress.epoch + 1, len(self.steps) % 10 + 1) == self.at:
                next(state.model.parameters()).data[0, 0] = value
            return result

        patch.setattr(loop, "_train_step", broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])  # the last is finite, its square is not
@pytest.mark.parametrize(
    ("at", "before", "place"),
    [((3, 2), "is from before", (2, 0)), ((3, 10), "is from before", (2, 0)), ((1, 4), "nothing was trained before", None)],
)
def test_divergence_stops_the_run_and_leaves_the_last_good_checkpoint(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    value: float,
    at: tuple[int, int],
    before: str,
    place: tuple[int, int] | None,
) -> None:
    config = settings(images, tmp_path, name="x")
    breaking = Breaking(at, value, monkeypatch)
    with pytest.raises(DivergedError) as error:
        start_run(config, breaking)
    assert str(error.value).startswith(f"training diverged in epoch {at[0]}: ")
    assert before in str(error.value)
    assert str(error.value).endswith("start a new run with a lower --lr than 0.1, or with --warmup-epochs")
    run = RunPaths(tmp_path, "x")
    assert run.last.exists() == (place is not None)
    if place:
        progress = load_checkpoint(run.last).progress
        assert (progress.epoch, progress.step) == place
        assert [json.loads(line)["epoch"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_divergence_is_noticed_before_a_checkpoint_within_an_epoch(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DivergedError, match="training diverged in epoch 1"):
        start_run(settings(images, tmp_path, name="x", checkpoint_minutes=1e-9), Breaking((1, 3), float("nan"), monkeypatch))
    assert load_checkpoint(RunPaths(tmp_path, "x").last).progress.step == 2


def test_a_rate_far_too_high(images: Path, tmp_path: Path) -> None:
    result = invoke(*arguments(settings(images, tmp_path, name="x", lr=1e6, lasso_step="subgradient")))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: training diverged in epoch ")
    metrics = RunPaths(tmp_path, "x").metrics
    for line in metrics.read_text().splitlines() if metrics.exists() else ():
        json.loads(line, parse_constant=pytest.fail)


def test_buffers_count_as_weights(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_broken_tensor", lambda state: "bn1.running_var")
    with pytest.raises(DivergedError, match=r"in epoch 1: bn1.running_var is not finite, and nothing was trained before"):
        start_run(settings(images, tmp_path), Recorder())


def test_a_validation_loss_that_is_not_finite_is_null(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda *args: loop.Evaluation(float("inf"), evaluate(*args).top1, 1.0))
    outcome = start_run(settings(images, tmp_path, epochs=2), Recorder())
    lines = [json.loads(line, parse_constant=pytest.fail) for line in outcome.run.metrics.read_text().splitlines()]
    assert [line["val_loss"] for line in lines] == [None, None]


@pytest.mark.parametrize("gone", ["generated_nets/x", "checkpoints/x", "generated_nets/x/epoch_000.py"])
def test_files_removed_while_the_run_trains(images: Path, tmp_path: Path, gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Removing(Recorder):
        def stepped(self, epoch: int, step: int) -> None:
            super().stepped(epoch, step)
            if (epoch, step) == (1, 4):
                path = tmp_path / gone
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    recorder = Removing()
    with pytest.raises((OutputError, NetworkFileError)) as error:
        start_run(settings(images, tmp_path, name="x"), recorder)
    assert "was removed while the run trained: put it back, or start a new run" in str(error.value)
    assert recorder.steps[-1] == (1, 10)
    assert not list(tmp_path.rglob("last.pt"))


def test_the_command_line_says_so_in_one_line(images: Path, stopped: RunPaths) -> None:
    config: TrainConfig = settings(images, stopped.output_dir, name="x")
    with held_by_another_process(stopped.checkpoints.parent / ".x.lock"):
        result = invoke(*arguments(config), "--resume", "auto")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: run x is in use by process ")
