"""However a run ends, resuming it gives bit for bit the weights, optimizer state and metrics of a run that was never stopped."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import RESNET, Recorder, arguments, assert_same_run, invoke, settings, write_images
from torch import nn

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError
from prunetrain.paths import RunPaths
from prunetrain.training import creation
from prunetrain.training.checkpoints import load_checkpoint
from prunetrain.training.run import Outcome, resume_run, start_run

TOP = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def reference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """LeNet-300-100 trained without a stop: 4 epochs of 10 steps, cut after the second and the fourth."""
    recorder = Recorder()
    outcome = start_run(settings(images, tmp_path_factory.mktemp("reference")), recorder)
    assert all(event.change.channels[1] < event.change.channels[0] for event in recorder.reconfigurations)
    return outcome


@pytest.mark.parametrize("stops", [[(1, 1)], [(1, 10)], [(2, 9)], [(2, 10)], [(3, 1)], [(1, 3), (1, 7), (2, 10), (4, 9)]], ids=str)
def test_ctrl_c_at_a_step(images: Path, tmp_path: Path, reference: Outcome, stops: list[tuple[int, int]]) -> None:
    outcome = start_run(settings(images, tmp_path), Recorder(stops[0]))
    for stop, following in zip(stops, [*stops[1:], None], strict=True):
        epoch, step = stop
        progress = load_checkpoint(outcome.run.last).progress
        assert not outcome.finished
        assert (progress.epoch, progress.step) == (epoch - 1, step)
        recorder = Recorder(following)
        outcome = resume_run(outcome.run.last, {}, recorder)
        assert recorder.steps[0] == ((epoch, step + 1) if step < 10 else (epoch + 1, 1))
    assert outcome.finished
    assert_same_run(outcome.run, reference.run)


def test_ctrl_c_at_the_very_last_step_leaves_the_validation_for_later(images: Path, tmp_path: Path, reference: Outcome) -> None:
    outcome = start_run(settings(images, tmp_path), Recorder((4, 10)))
    assert not outcome.finished
    recorder = Recorder()
    assert resume_run(outcome.run.last, {}, recorder).finished
    assert recorder.steps == []
    assert_same_run(outcome.run, reference.run)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine"},
        {"lasso_step": "subgradient", "lasso_groups": "slices", "nesterov": True, "warmup_epochs": 3},
        {"amp": "bfloat16", "threshold": 1e-2, "criterion": "union"},
        {"round_to": "8", "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_every_setting_resumes(images: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = start_run(settings(images, tmp_path / "whole", **changes), Recorder())
    parts = start_run(settings(images, tmp_path / "parts", **changes), Recorder((3, 4)))
    assert_same_run(resume_run(parts.run.last, {}, Recorder()).run, whole.run)


def test_dropout_resumes(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: object, **named: object) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))

    monkeypatch.setattr(creation, "build_with_weights", build)
    whole = start_run(settings(images, tmp_path / "whole", epochs=2, penalty_ratio=0.2), Recorder())
    parts = start_run(settings(images, tmp_path / "parts", epochs=2, penalty_ratio=0.2), Recorder((1, 4)))
    assert_same_run(resume_run(parts.run.last, {}, Recorder()).run, whole.run)


def test_frozen_layers_resume(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: object, **named: object) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        model[1].requires_grad_(False)
        return model

    monkeypatch.setattr(creation, "build_with_weights", build)
    whole = start_run(settings(images, tmp_path / "whole", epochs=2, penalty_ratio=0.2), Recorder())
    parts = start_run(settings(images, tmp_path / "parts", epochs=2, penalty_ratio=0.2), Recorder((1, 4)))
    assert_same_run(resume_run(parts.run.last, {}, Recorder()).run, whole.run)


@pytest.mark.parametrize("epoch", [0, 2])
def test_earlier_checkpoints_lead_to_the_same_end(images: Path, tmp_path: Path, reference: Outcome, epoch: int) -> None:
    outcome = start_run(settings(images, tmp_path), Recorder())
    assert_same_run(resume_run(outcome.run.checkpoint(epoch), {}, Recorder()).run, reference.run)


def test_finished_run_stays_as_it_is(images: Path, tmp_path: Path) -> None:
    outcome = start_run(settings(images, tmp_path), Recorder())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    recorder = Recorder()
    again = resume_run(outcome.run.last, {}, recorder)
    assert (again, recorder.steps) == (outcome, [])
    assert recorder.messages[-1] == "epoch 4 was the last: continue with a larger --epochs"
    resume_run(outcome.run.last, {"epochs": 2}, recorder)
    assert recorder.messages[-1] == "epoch 4 was the last: continue with a larger --epochs"  # than 4, not than 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_more_epochs(images: Path, tmp_path: Path) -> None:
    first = start_run(settings(images, tmp_path, epochs=2, schedule="constant"), Recorder())
    recorder = Recorder()
    second = resume_run(first.run.last, {"epochs": 5, "threshold": 1e9}, recorder)
    assert recorder.steps == [(epoch, step) for epoch in (3, 4, 5) for step in range(1, 11)]
    assert [line["epoch"] for line in second.history] == [1, 2, 3, 4, 5]
    assert list(second.run.network_files()) == [0, 2, 4, 5]
    config = load_checkpoint(second.run.last).config
    assert (config["epochs"], config["threshold"]) == (5, 1e9)
    assert recorder.reconfigurations[0].change.rescued_spaces  # the new threshold counts


@pytest.mark.parametrize(
    "given",
    [{"lr": 0.2}, {"batch_size": 16}, {"model": "mlp"}, {"seed": 1}, {"penalty_ratio": 0.0}, {"optimizer": "adamw"}, {"augment": False}],
)
def test_fixed_settings_cannot_change(reference: Outcome, given: dict[str, Any]) -> None:
    flag = "--" + next(iter(given)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"^{flag} cannot change when a run is resumed"):
        resume_run(reference.run.last, given, Recorder())
    same = {key: getattr(TrainConfig(**load_checkpoint(reference.run.last).config), key) for key in given}
    assert resume_run(reference.run.last, same, Recorder()).finished


def test_a_run_goes_on_where_it_is(reference: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = reference.run
    monkeypatch.chdir(run.output_dir)
    for path in (run.last, run.checkpoints, run.name):
        for elsewhere in (["--name", "other"], ["--output-dir", tmp_path]):
            result = invoke("train", "--resume", path, *elsewhere)
            assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
            assert result.stderr.endswith(": leave out --name and --output-dir, or copy the run first\n")
    file = tmp_path / "mine.toml"
    file.write_text('name = "other"\n')  # of a start, as the rest of a config file
    for same in (["--name", run.name, "--output-dir", run.output_dir], ["--config", file]):
        assert invoke("train", "--resume", run.last, *same).exit_code == 0


def test_settings_of_a_file_count_as_flags_do(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('lr = 0.05\nepochs = 1\nname = "x"\n')
    command = [*arguments(settings(images, tmp_path, epochs=40)), "--config", str(file), "--resume", "auto"]
    assert invoke(*command, "--epochs", "1").exit_code == 0
    file.write_text('lr = 0.05\nepochs = 2\nname = "x"\n')
    assert invoke("train", "--config", str(file), "--output-dir", tmp_path, "--resume", "auto").exit_code == 0
    assert len(RunPaths(tmp_path, "x").metrics.read_text().splitlines()) == 2
    file.write_text('lr = 0.04\nname = "x"\n')
    result = invoke("train", "--config", str(file), "--output-dir", tmp_path, "--resume", "auto")
    assert (result.exit_code, result.stderr.startswith("error: --lr cannot change")) == (2, True)


def test_data_that_does_not_fit_is_refused(reference: Outcome, tmp_path: Path) -> None:
    for name, changes, got in (("classes", {"classes": 6}, "1x8x8 of 6"), ("side", {"side": 9}, "1x9x9 of 4")):
        other = write_images(tmp_path / f"{name}.npz", **changes)
        with pytest.raises(ConfigError, match=f"takes 1x8x8 images of 4 classes, and the data has {got}$"):
            resume_run(reference.run.last, {"data_dir": str(other), "epochs": 5}, Recorder())


def test_leftovers_of_a_crash_go(images: Path, tmp_path: Path, reference: Outcome) -> None:
    outcome = start_run(settings(images, tmp_path), Recorder((3, 4)))
    (outcome.run.checkpoints / ".last.pt.0123abcd.tmp").write_text("half")
    with outcome.run.metrics.open("a") as file:
        file.write('{"epoch": 3, "tr')
    assert_same_run(resume_run(outcome.run.last, {}, Recorder()).run, reference.run)


def test_auto_starts_a_run_when_there_is_none_and_takes_the_newest(images: Path, tmp_path: Path) -> None:
    command = [*arguments(settings(images, tmp_path, epochs=1, name="x")), "--resume", "auto"]
    assert invoke(*command).exit_code == 0
    assert RunPaths(tmp_path, "x").last.exists()
    assert invoke(*command[:-2]).exit_code == 0
    result = invoke(*command, "--epochs", "2")
    assert result.exit_code == 0
    assert f"resuming from {RunPaths(tmp_path, 'x-2').last}" in result.stdout
    lines = [len(RunPaths(tmp_path, name).metrics.read_text().splitlines()) for name in ("x", "x-2")]
    assert lines == [1, 2]


def test_a_name_or_a_folder_means_the_newest_whole_checkpoint(images: Path, tmp_path: Path, reference: Outcome) -> None:
    for number, what in enumerate(("x", "checkpoints/x", "generated_nets/x")):
        folder = tmp_path / str(number)
        run = start_run(settings(images, folder, name="x"), Recorder((3, 4))).run
        run.last.write_bytes(run.last.read_bytes()[:1000])
        result = invoke("train", "--output-dir", folder, "--resume", what if what == "x" else folder / what)
        assert result.exit_code == 0, result.stderr
        assert f"resuming from {run.checkpoint(2)}" in result.stdout
        assert_same_run(run, reference.run)
    result = invoke("train", "--output-dir", tmp_path, "--resume", "y")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: y is neither a file nor a run here: ")


def test_auto_after_a_crash_before_the_first_checkpoint(images: Path, tmp_path: Path) -> None:
    RunPaths(tmp_path, "x").networks.mkdir(parents=True)
    result = invoke(*arguments(settings(images, tmp_path, epochs=1, name="x")), "--resume", "auto")
    assert result.exit_code == 0
    assert RunPaths(tmp_path, "x").last.exists()
    assert not RunPaths(tmp_path, "x-2").exists()


def test_auto_after_a_crash_before_the_first_epoch_ended(images: Path, tmp_path: Path, reference: Outcome) -> None:
    outcome = start_run(settings(images, tmp_path), Recorder((1, 1)))
    outcome.run.last.unlink()
    assert invoke(*arguments(settings(images, tmp_path)), "--resume", "auto").exit_code == 0
    assert_same_run(outcome.run, reference.run)


class Killed:
    """Real processes of one run, each ended by a signal at a random moment after it has trained an epoch."""

    def __init__(self, config: TrainConfig) -> None:
        self.command = [sys.executable, "-m", "prunetrain", *arguments(config)]
        self.environment = {**os.environ, "PYTHONPATH": str(TOP)}

    def run(self, number: signal.Signals, delay: float, *more: str) -> tuple[int, str, str]:
        """Returns exit code, stdout, stderr."""
        process = subprocess.Popen([*self.command, *more], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        head = []
        for line in process.stdout:
            head.append(line)
            if "/4 " in line:  # the line of an epoch
                break
        time.sleep(delay)
        process.send_signal(number)
        out, err = process.communicate()
        return process.returncode, "".join(head) + out, err


def test_real_processes(images: Path, tmp_path: Path) -> None:
    """ResNet-20: Ctrl-C, then kill -9, then to the end."""
    config = settings(images, tmp_path / "parts", **{**RESNET, "batch_size": 16})
    killed, moment = Killed(config), random.Random()
    code, out, err = killed.run(signal.SIGINT, moment.uniform(0, 0.3))
    run = RunPaths((tmp_path / "parts").resolve(), "resnet20-npz")
    assert (code, err) == (130, "")
    assert out.splitlines()[-1] == f"stopped; resume with: prunetrain train --resume {run.last}"
    trained = len(run.metrics.read_text().splitlines())
    code, out, err = killed.run(signal.SIGKILL, moment.uniform(0, 0.3), "--resume", "auto")
    assert (code, err) == (-signal.SIGKILL, "")
    assert len(run.metrics.read_text().splitlines()) > trained
    result = invoke(*arguments(config), "--resume", "auto")
    assert (result.exit_code, result.stderr) == (0, "")
    whole = start_run(settings(images, tmp_path / "whole", **{**RESNET, "batch_size": 16}), Recorder())
    assert_same_run(run, whole.run)
