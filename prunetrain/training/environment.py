"""Where a run computes: this process's device, and the processes that train with it. A checkpoint holds nothing of this."""

import sys
import warnings
from dataclasses import dataclass, field
from functools import cache

import torch

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError
from prunetrain.training.data import DataSource, load_data
from prunetrain.training.data.base import Say, Share, ignore_line
from prunetrain.training.distribution import Ranks
from prunetrain.training.joining import is_launched_worker, local_rank

_ONE_IN = 20  # images may be left out of an epoch without a message


@dataclass(frozen=True)
class Environment:
    """A device, and all processes of the run; by default this one alone."""

    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)

    @classmethod
    def of(cls, config: TrainConfig) -> "Environment":
        """The device that the settings ask for, with the processes that this one has joined.

        Raises:
            ConfigError: if the settings name a device that this machine does not have.
        """
        return cls(choose_device(config), Ranks.joined())

    @property
    def share(self) -> Share:
        """This process's part of every batch."""
        return Share(self.ranks.rank, self.ranks.world_size)

    def images_each(self, batch_size: int) -> int:
        """Images per step in each process.

        Raises:
            ConfigError: if the batch cannot be divided evenly: the processes' mean losses would be averaged with the wrong weights.
        """
        workers = self.ranks.world_size
        if batch_size % workers:
            sizes = [size for size in (batch_size // workers * workers, (batch_size // workers + 1) * workers) if size]
            raise ConfigError(
                f"a batch of {batch_size} images cannot be shared evenly by {workers} workers: "
                f"use --batch-size {' or '.join(map(str, sizes))}, or another number of workers"
            )
        return batch_size // workers

    def load_data(self, config: TrainConfig, say: Say = ignore_line) -> DataSource:
        """Load the data set of the settings; rank 0 loads it first if it must be downloaded or cached. `say` is as for `load_data`.

        Raises:
            DataError: if it cannot be read.
            WorkerError: if it is not the same everywhere.
        """
        first_alone = self.ranks.world_size > 1 and bool(config.download or config.cache)
        if first_alone:
            self.ranks.on_rank_zero(lambda: load_data(config, self.device, say).num_train)
        data = load_data(config, self.device, ignore_line if first_alone else say)
        self.ranks.check_same("data set", f"{data.num_train} {data.num_val} {data.input_shape} {data.class_names}")
        return data


def warning_images_left_out(images: int, batch_size: int, workers: int = 1) -> str | None:
    """A sentence on how many images an epoch leaves out because they do not fill a batch, and a smaller batch that leaves out few.

    None if it leaves out no more than one in twenty.

    Args:
        images: number of training images, at least one batch.
        batch_size: images per step, over all workers.
        workers: number of workers that share a batch evenly.
    """
    most = images // _ONE_IN
    if images % batch_size <= most:
        return None
    better = next((size for size in range(batch_size, batch_size // 2, -workers) if images % size <= most), None)
    advice = f": --batch-size {better} {_uses(images % better)}" if better else ""
    return f"an epoch leaves out {images % batch_size:,} of {images:,} images{advice}"


def _uses(left: int) -> str:
    return f"leaves out {left:,}" if left else "uses all"


def choose_device(config: TrainConfig) -> torch.device:
    """The device of a run; each of several workers has the GPU of its number.

    A GPU becomes torch's current one: otherwise pinning memory, and anything else that names no GPU, would open the first one as well.

    Raises:
        ConfigError: if the settings name a device that this machine does not have or torch cannot use.
    """
    name = config.device if config.device != "auto" else ("cuda" if _usable_gpus() else "cpu")
    if is_launched_worker() and name == "cuda":
        alone = torch.cuda.device_count() == 1  # the launcher shows each process only one GPU
        name = f"cuda:{0 if alone else local_rank()}"
    absent = f"device {config.device!r} is not on this machine: use auto, cpu, or cuda where there is a GPU"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(absent) from None
    try:
        torch.ones(1, device=device)
    except (RuntimeError, AssertionError) as error:
        there = device.type == "cuda" and torch.cuda.device_count() > (device.index or 0)
        what = f"device {config.device!r} cannot be used: use another, or --device cpu" if there else absent
        raise ConfigError(f"{what} ({(str(error) or type(error).__name__).splitlines()[0]})") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(absent)
    if config.amp == "float16" and device.type == "cpu":
        raise ConfigError("--amp float16 needs a GPU: use --amp bfloat16 on a CPU")
    return _current(device) if device.type == "cuda" else device


def _current(gpu: torch.device) -> torch.device:
    """Make a GPU torch's current one, and return it with its number."""
    numbered = torch.device("cuda", torch.cuda.current_device() if gpu.index is None else gpu.index)
    torch.cuda.set_device(numbered)
    return numbered


@cache
def _usable_gpus() -> bool:
    """Whether torch can use a GPU of this machine. If there is one that it cannot use, print that once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable and local_rank() == 0 and (caught or torch.cuda.device_count()):
        reason = f" ({str(caught[0].message).splitlines()[0]})" if caught else ""
        print(f"torch cannot use this machine's GPU, so the CPU is used{reason}", file=sys.stderr, flush=True)
    return usable


def check_devices(config: TrainConfig, workers: int) -> None:
    """Check, before any worker is started, that this machine has a device for each.

    GPUs are counted but not opened: in exclusive mode each admits one process, which must be a worker.

    Raises:
        ConfigError: if it has not.
    """
    gpus = torch.cuda.device_count()
    if config.device.partition(":")[0] != "cuda" and not (config.device == "auto" and gpus):
        choose_device(config)
    elif config.device not in ("auto", "cuda"):
        raise ConfigError(f"device {config.device!r} is one GPU, and several workers need one each: use --device cuda")
    elif gpus < workers:
        fewer = f"--gpus {gpus}, or --device cpu" if gpus else "--device cpu"
        raise ConfigError(f"{workers} workers need a GPU each, and this machine has {gpus}: use {fewer}")
