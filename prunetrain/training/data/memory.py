"""Data sets that are held in memory as uint8, on the GPU if the run uses one.

In: two splits, their statistics and augmentation. Out: a `DataSource` whose batches cost a few tensor operations each.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from prunetrain.config import TrainConfig
from prunetrain.training.data.augmentation import Augmentation, pad
from prunetrain.training.data.base import WHOLE, Batch, Normalizer, Share, Split, Statistics, epoch_generator

_BYTES_AT_ONCE: Final = 4 << 20
"""Bytes of images that are moved at once: several batches if they are small, for which operations would take longer to call than to do."""


class InMemory:
    """A `DataSource` over tensors."""

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        train: Split,
        val: Split,
        *,
        class_names: Sequence[str],
        statistics: Statistics,
        augmentation: Augmentation,
    ) -> None:
        """Move both splits to `device`, in the memory format of the batches; `augmentation` acts unless the settings turn it off."""
        channels, height, width = train.images.shape[1:]
        self.input_shape = (channels, height, width)
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.num_train = len(train.labels)
        self.num_val = len(val.labels)
        self.train_counts, self.val_counts = (
            tuple(torch.bincount(split.labels, minlength=self.num_classes).tolist()) for split in (train, val)
        )
        self._augmentation = augmentation if config.augment else Augmentation(padding=0, flip=False)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        padded = pad(train.images.to(device), self._augmentation.padding, layout)  # once for all, not in every step
        self._train = Split(padded, train.labels.to(device))
        self._val = Split(val.images.to(device).contiguous(memory_format=layout), val.labels.to(device))
        self._seed = config.seed
        self._device = device
        self.normalize_by(statistics)

    def train_batches(self, epoch: int, batch_size: int, *, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield shuffled, augmented batches from number `start` on. Order and moves are drawn for the whole epoch at its start."""
        generator = epoch_generator(self._seed, epoch)
        order, moves = torch.randperm(self.num_train, generator=generator), self._augmentation.draw(self.num_train, generator)
        spans = [share.of(step * batch_size, (step + 1) * batch_size) for step in range(start, self.steps_per_epoch(batch_size))]
        positions = torch.arange(self.num_train)
        own = torch.cat([positions[:0], *(positions[span] for span in spans)])
        order, moves = order[own].to(self._device), moves[own].to(self._device)
        sizes = [span.stop - span.start for span in spans]
        first = 0
        for group in self._groups(sizes):
            several = slice(first, first + sum(group))
            images, labels = moves[several].cut(self._train.images, order[several]), self._train.labels[order[several]]
            for some, theirs in zip(torch.split(images, group), torch.split(labels, group), strict=True):
                yield self._normalize(some), theirs
            first = several.stop

    def _groups(self, sizes: list[int]) -> Iterator[list[int]]:
        """Group batches of these sizes by as many in a row as are moved at once."""
        several = max(1, _BYTES_AT_ONCE // max(1, math.prod(self.input_shape) * max(sizes, default=1)))
        return (sizes[first : first + several] for first in range(0, len(sizes), several))

    def val_batches(self, batch_size: int, *, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield every validation image once, in order."""
        for first in range(0, self.num_val, batch_size):
            span = share.of(first, min(first + batch_size, self.num_val))
            if span.start < span.stop:
                yield self._normalize(self._val.images[span]), self._val.labels[span]

    def normalize_by(self, statistics: Statistics) -> None:
        """Normalise by these statistics from now on."""
        self.statistics = statistics
        self._normalize = Normalizer(statistics, self._device)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of complete batches in the training images."""
        return self.num_train // batch_size
