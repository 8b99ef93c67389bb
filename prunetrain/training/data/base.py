"""What a data set gives to the training loop, and what all data sets share: order, normalisation, wording of errors.

In: uint8 images. Out: batches of float32 images (N, C, H, W), normalised, and int64 labels (N,), both on the run's device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Say = Callable[[str], object]
"""What is told a line for people."""


def silent(line: str) -> None:
    """Told anything, says nothing."""


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes takes: neighbours, in the order of the ranks; by default all of it."""

    rank: int = 0
    count: int = 1

    def of(self, first: int, last: int) -> slice:
        """The part of the positions from `first` up to, without, `last`; as even as can be, and maybe empty."""
        size = last - first
        return slice(first + size * self.rank // self.count, first + size * (self.rank + 1) // self.count)


WHOLE = Share()


class DataSource(Protocol):
    """A data set ready for training.

    The batches of an epoch are a function of (seed, epoch, batch size) alone, the same on every device. No method touches torch's global
    random state, so a run that resumes in the middle of an epoch needs the number of batches done and nothing else. Of several processes
    each takes its share of the same batches.
    """

    input_shape: tuple[int, int, int]  # C, H, W
    num_classes: int
    class_names: tuple[str, ...]
    num_train: int
    num_val: int
    statistics: "Statistics"  # that pixels are normalised by
    train_counts: tuple[int, ...]  # images of each class
    val_counts: tuple[int, ...]

    def train_batches(self, epoch: int, batch_size: int, *, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Shuffled, augmented batches from number `start` on; the last, incomplete one is dropped. Skipped batches cost nothing."""
        ...

    def val_batches(self, batch_size: int, *, share: Share = WHOLE) -> Iterator[Batch]:
        """Every validation image once, in order; the last batch may be smaller, and a share of it that is empty is left out."""
        ...

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches that `train_batches` gives from start 0."""
        ...

    def normalize_by(self, statistics: "Statistics") -> None:
        """From now on go by other statistics than the set's own: those of the images that a network was trained on."""
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
        """Exact statistics of uint8 images (N, C, H, W): the sums are whole numbers, so no order of adding changes them."""
        total = torch.zeros(images.shape[1], dtype=torch.int64)
        squares = torch.zeros_like(total)
        for chunk in torch.split(images, 1024):
            levels = chunk.to(torch.int64)
            total += levels.sum(dim=(0, 2, 3)).cpu()
            squares += levels.square_().sum(dim=(0, 2, 3)).cpu()
        pixels = images.numel() // images.shape[1]
        mean = total.double() / pixels
        std = (squares.double() / pixels - mean.square()).clamp(min=0).sqrt()
        std[std == 0] = 255  # a channel of one single level stays finite
        return cls(tuple((mean / 255).tolist()), tuple((std / 255).tolist()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> "Statistics":
        """What `to_dict` gave."""
        return cls(tuple(values["mean"]), tuple(values["std"]))

    def to_dict(self) -> dict[str, list[float]]:
        """As a checkpoint holds them."""
        return {"mean": list(self.mean), "std": list(self.std)}


class Normalizer:
    """Turns uint8 images (N, C, H, W) into float32 ones of mean 0 and standard deviation 1."""

    def __init__(self, statistics: Statistics, device: torch.device) -> None:
        """Prepare scale and shift of each channel on `device`."""
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (statistics.mean, statistics.std))
        self._scale = (1 / (255 * std)).to(device, torch.float32)
        self._shift = (-mean / std).to(device, torch.float32)
        self._row = (self._scale.flatten()[:0], self._shift.flatten()[:0])  # both, repeated along the last width

    def __call__(self, images: Tensor) -> Tensor:
        """(level / 255 - mean) / std, on the images' device and in their memory format."""
        if images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
            return images.to(torch.float32).mul_(self._scale).add_(self._shift)
        pixels = images.permute(0, 2, 3, 1)
        scale, shift = self._along(images.shape[3])
        rows = pixels.flatten(2).to(torch.float32)  # (N, H, W * C): few numbers a channel would be slow to broadcast
        return rows.mul_(scale).add_(shift).view(pixels.shape).permute(0, 3, 1, 2)

    def _along(self, width: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of a row of pixels, each (width * C,)."""
        if len(self._row[0]) != width * self._scale.numel():
            self._row = (self._scale.flatten().repeat(width), self._shift.flatten().repeat(width))
        return self._row


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator, on the CPU, of all that is random about one epoch; seed and epoch are hashed so that neighbours share nothing."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def one_line(error: BaseException) -> str:
    """What a library's exception says, without line breaks and cut to a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def as_text(name: str) -> str:
    """A file's name without bytes that are no UTF-8, which are escaped."""
    return name.encode(errors="backslashreplace").decode()


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first few of many names: "a, b, c and 4 more"."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
