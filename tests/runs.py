"""Small real runs for tests: 8x8 images that can be learned, settings that cut channels within seconds, comparisons bit by bit."""

import json
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from prunetrain.commands import main
from prunetrain.config import TrainConfig
from prunetrain.paths import RunPaths
from prunetrain.training.checkpoints import Checkpoint, load_checkpoint
from prunetrain.training.events import Metrics, Observer, Reconfiguration

UNREPEATABLE = ("epoch_seconds", "images_per_second", "peak_memory_bytes")  # the metrics that differ from run to run

# So strong a lasso, on so short a schedule, that both reconfigurations, after epochs 2 and 4, find dead channels.
LENET = {
    "model": "lenet-300-100",
    "epochs": 4,
    "prune_interval": 2,
    "penalty_ratio": 0.94,
    "target_macs": 0.0,
    "round_to": "1",
}  # a third of a second
RESNET = LENET | {"model": "resnet20", "penalty_ratio": 0.985, "milestones": (3,)}  # two seconds


def write_images(path: Path, *, train: int = 320, val: int = 80, side: int = 8, classes: int = 4, seed: int = 0) -> Path:
    """An .npz of noise with a bright square, whose place is the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, train + val)
    images = random.integers(0, 156, (train + val, side, side), dtype=np.uint8)
    half = side // 2
    for image, label in zip(images, labels, strict=True):
        image[half * (label // 2 % 2) :, half * (label % 2) :][:half, :half] += 100
    np.savez(path, x_train=images[:train], y_train=labels[:train], x_test=images[train:], y_test=labels[train:])
    return path


def settings(images: Path, output_dir: Path, **changes: Any) -> TrainConfig:
    """The settings of a run on `write_images`, by default of `LENET`."""
    return TrainConfig(**{"dataset": "npz", "data_dir": str(images), "output_dir": str(output_dir), "device": "cpu", **LENET, **changes})


def arguments(config: TrainConfig) -> list[str]:
    """The command line that gives these settings."""
    given = {key: value for key, value in config.to_dict().items() if value != getattr(TrainConfig(), key)}
    words = {key: ",".join(map(str, value)) if isinstance(value, tuple) else str(value) for key, value in given.items()}
    return ["train", *(part for key, word in words.items() for part in (f"--{key.replace('_', '-')}", word))]


def invoke(*args: str | Path) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="prunetrain")


class Recorder(Observer):
    """An observer that keeps what it is told, and presses Ctrl-C after a step of an epoch (both from 1)."""

    def __init__(self, stop_at: tuple[int, int] | None = None) -> None:
        self.stop_at = stop_at
        self.steps: list[tuple[int, int]] = []
        self.metrics: list[Metrics] = []
        self.reconfigurations: list[Reconfiguration] = []
        self.messages: list[str] = []

    def stepped(self, epoch: int, step: int) -> None:
        self.steps.append((epoch, step))
        if (epoch, step) == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    def epoch_ended(self, metrics: Metrics) -> None:
        self.metrics.append(metrics)

    def reconfigured(self, event: Reconfiguration) -> None:
        self.reconfigurations.append(event)

    def message(self, text: str) -> None:
        self.messages.append(text)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, the system refuses to let a file grow over a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def repeatable(history: list[Metrics]) -> list[Metrics]:
    """Lines of metrics without timings and memory."""
    return [{key: value for key, value in line.items() if key not in UNREPEATABLE} for line in history]


def assert_same_run(run: RunPaths, reference: RunPaths) -> None:
    """Same files, same networks, same bits, same metrics."""
    assert [path.name for path in run.network_files().values()] == [path.name for path in reference.network_files().values()]
    for epoch, path in reference.network_files().items():
        assert run.network(epoch).read_bytes() == path.read_bytes()
    for epoch, path in reference.checkpoint_files().items():
        assert_same_state(load_checkpoint(run.checkpoint(epoch)), load_checkpoint(path))
    assert_same_state(load_checkpoint(run.last), load_checkpoint(reference.last))
    left, right = ([json.loads(line) for line in one.metrics.read_text().splitlines()] for one in (run, reference))
    assert repeatable(left) == repeatable(right)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == sorted(path.name for path in reference.checkpoints.iterdir())


def assert_same_state(left: Checkpoint, right: Checkpoint) -> None:
    """Two checkpoints hold the same bits, apart from timings, and from where their runs lie."""
    for part in ("network", "network_sha256", "model", "optimizer", "parameters", "scaler", "rng", "class_names", "statistics"):
        assert_identical(getattr(left, part), getattr(right, part), part)
    first, second = ({**vars(c.progress), "history": repeatable(c.progress.history), "running": {}} for c in (left, right))
    assert_identical(first, second, "progress")


def assert_identical(left: object, right: object, where: str = "") -> None:
    """Nested values are equal; tensors bit by bit."""
    if isinstance(left, Tensor):
        assert isinstance(right, Tensor), where
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    elif isinstance(left, Mapping):
        assert isinstance(right, Mapping), where
        assert list(left) == list(right), where
        for key in left:
            assert_identical(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert isinstance(right, list | tuple), where
        assert len(left) == len(right), where
        for number, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_identical(a, b, f"{where}[{number}]")
    else:
        assert left == right, where
