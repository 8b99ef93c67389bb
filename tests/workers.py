"""Real processes that train together, for tests: forked from a server that has imported everything, so that they start at once."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from runs import Recorder
from torch import Tensor, distributed
from torch import multiprocessing as torch_processes

from prunetrain.config import TrainConfig
from prunetrain.training import run as run_module
from prunetrain.training.data import Batch, DataSource
from prunetrain.training.environment import Environment
from prunetrain.training.fingerprint import fingerprint
from prunetrain.training.state import TrainState

# A network small enough for hundreds of steps a second, with BatchNorm, a residual connection and more channels than it needs.
NETWORK = """
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, int, int], dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 24, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        return self.fc(self.dropout(x.mean((2, 3))))
"""


def together(count: int, work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Let processes that have joined each other do something; what each of them returned, by rank. A failure of any is raised.

    Args:
        count: how many processes.
        work: a function of a module; gets the rank and `args`, returns tensors and literals.
        folder: a new or empty one.
        args: further arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # as `launching` has it; the server that forks the processes inherits it
    multiprocessing.set_forkserver_preload(["torch._dynamo", "prunetrain.training.run", "prunetrain.training.launching", "runs"])
    torch_processes.start_processes(  # type: ignore[no-untyped-call]
        _process, args=(count, str(folder), work, args), nprocs=count, start_method="forkserver"
    )
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(count)]


def _process(rank: int, count: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
    torch.save(work(rank, *args), f"{folder}/rank{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


class Doubles:
    """A data set with images in float64."""

    def __init__(self, source: DataSource) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def train_batches(self, *args: Any, **named: Any) -> Iterator[Batch]:
        return ((images.double(), labels) for images, labels in self._source.train_batches(*args, **named))

    def val_batches(self, *args: Any, **named: Any) -> Iterator[Batch]:
        return ((images.double(), labels) for images, labels in self._source.val_batches(*args, **named))


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside, runs compute in float64 throughout."""
    load_data = Environment.load_data
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(Environment, "load_data", lambda self, *args: Doubles(load_data(self, *args))):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


class Story:
    """A run from its start, watched: what this process held after each reconfiguration and at the end."""

    def __init__(self, config: TrainConfig) -> None:
        self.held: list[str] = []
        self.recorder = Recorder()
        reconfigure = run_module.reconfigure

        def watched(state: TrainState, data: DataSource, val_top1: float) -> Any:
            after, event = reconfigure(state, data, val_top1)
            self.held.append(
                fingerprint([after.network_sha256, after.model.state_dict(), after.optimizer.state_dict(), vars(after.progress)])
            )
            self.weights: dict[str, Tensor] = after.model.state_dict()
            return after, event

        with patch.object(run_module, "reconfigure", watched):
            self.outcome = run_module.start_run(config, self.recorder)

    def told(self) -> dict[str, Any]:
        """The run in tensors and literals."""
        return {
            "held": self.held,
            "channels": [event.change.channels for event in self.recorder.reconfigurations],
            "history": self.outcome.history,
            "weights": self.weights,
            "checkpoints": str(self.outcome.run.checkpoints),
        }
