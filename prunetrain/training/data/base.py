"""The interface between data sets and the training loop, and what all data sets share: order, normalisation, wording of errors.

In: uint8 images. Out: batches of float32 images (N, C, H, W), normalised, and int64 labels (N,), both on the run's device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

SMALL_SIDE = 64
"""Pixels; images up to this side are treated like CIFAR's."""

Batch = tuple[Tensor, Tensor]
Say = Callable[[str], object]
"""A function that shows one line to the user."""


def ignore_line(line: str) -> None:
    """Ignore the line."""


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes takes: consecutive images, in rank order; by default all of it."""

    rank: int = 0
    count: int = 1

    def of(self, first: int, last: int) -> slice:
        """The part of the positions from `first` up to but excluding `last`; parts are as even as possible and may be empty."""
        size = last - first
        return slice(first + size * self.rank // self.count, first + size * (self.rank + 1) // self.count)


WHOLE = Share()


class DataSource(Protocol):
    """A data set ready for training.

    The batches of an epoch depend on (seed, epoch, batch size) alone, and are the same on every device. No method touches torch's global
    random state, so a run that resumes in the middle of an epoch needs only the number of batches done. Several processes take shares of
    the same batches.
    """

    input_shape: tuple[int, int, int]  # C, H, W
    num_classes: int
    class_names: tuple[str, ...]
    num_train: int
    num_val: int
    statistics: "Statistics"  # by which pixels are normalised
    train_counts: tuple[int, ...]  # images of each class
    val_counts: tuple[int, ...]

    def train_batches(self, epoch: int, batch_size: int, *, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield shuffled, augmented batches from number `start` on; the last, incomplete one is dropped. Skipped batches cost nothing."""
        ...

    def val_batches(self, batch_size: int, *, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield every validation image once, in order; the last batch may be smaller, and an empty share of it is left out."""
        ...

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches that `train_batches` yields from start 0."""
        ...

    def normalize_by(self, statistics: "Statistics") -> None:
        """Normalise by these statistics from now on, those of a network's training images, instead of the set's own."""
        ...


@dataclass(frozen=True)
class Split:
    """Images of one half of a data set: uint8 (N, C, H, W), and their labels: int64 (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel over all training pixels, with pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> "Statistics":
        """Compute exact statistics of uint8 images (N, C, H, W): the sums are integers, so the order of addition does not matter."""
        total = torch.zeros(images.shape[1], dtype=torch.int64)
        squares = torch.zeros_like(total)
        for chunk in torch.split(images, 1024):
            levels = chunk.to(torch.int64)
            total += levels.sum(dim=(0, 2, 3)).cpu()
            squares += levels.square_().sum(dim=(0, 2, 3)).cpu()
        pixels = images.numel() // images.shape[1]
        mean = total.double() / pixels
        std = (squares.double() / pixels - mean.square()).clamp(min=0).sqrt()
        std[std == 0] = 255  # keeps a channel with a single level finite
        return cls(tuple((mean / 255).tolist()), tuple((std / 255).tolist()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> "Statistics":
        """Restore what `to_dict` gave."""
        return cls(tuple(values["mean"]), tuple(values["std"]))

    def to_dict(self) -> dict[str, list[float]]:
        """The statistics as a checkpoint stores them."""
        return {"mean": list(self.mean), "std": list(self.std)}


class Normalizer:
    """Turns uint8 images (N, C, H, W) into float32 ones of mean 0 and standard deviation 1."""

    def __init__(self, statistics: Statistics, device: torch.device) -> None:
        """Prepare scale and shift of each channel on `device`."""
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (statistics.mean, statistics.std))
        self._scale = (1 / (255 * std)).to(device, torch.float32)
        self._shift = (-mean / std).to(device, torch.float32)
        self._row = (self._scale.flatten()[:0], self._shift.flatten()[:0])  # both, repeated along rows of the latest width

    def __call__(self, images: Tensor) -> Tensor:
        """(level / 255 - mean) / std, on the images' device and in their memory format."""
        if images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
            return images.to(torch.float32).mul_(self._scale).add_(self._shift)
        pixels = images.permute(0, 2, 3, 1)
        scale, shift = self._along(images.shape[3])
        rows = pixels.flatten(2).to(torch.float32)  # (N, H, W * C): broadcasting over so few channels would be slow
        return rows.mul_(scale).add_(shift).view(pixels.shape).permute(0, 3, 1, 2)

    def _along(self, width: int) -> tuple[Tensor, Tensor]:
        """Scale and shift for a row of pixels, each (width * C,)."""
        if len(self._row[0]) != width * self._scale.numel():
            self._row = (self._scale.flatten().repeat(width), self._shift.flatten().repeat(width))
        return self._row


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The CPU generator for everything random in one epoch; seed and epoch are hashed, so that neighbouring ones are unrelated."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def named_missing(path: Path) -> str:
    """A missing path as a message names it: a relative one with the folder it is relative to, since a run may have begun in another."""
    return str(path) if path.is_absolute() else f"{path} (in {Path.cwd()})"


def escape_non_utf8(name: str) -> str:
    """A file's name with bytes that are not UTF-8 escaped."""
    return name.encode(errors="backslashreplace").decode()
