"""Images that belong to no data set, as a trained network takes them.

In: files, and the settings that the network was trained with. Out: normalised batches on a device, and the files that cannot be read.

For a network that was trained on a folder, images are prepared as that folder's were in validation. Arrays, digits and CIFAR have images of
one size; for a network that was trained on these, the largest part of an image that has their shape is cut from its middle and resized, and
is made grey where they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from prunetrain.config import TrainConfig
from prunetrain.errors import ConfigError
from prunetrain.training.data.base import Normalizer, Statistics
from prunetrain.training.data.decoding import Decoding, Unreadable
from prunetrain.training.data.folder import as_grey, centred_at
from prunetrain.training.data.workers import in_workers

Numbered = tuple[list[int], Tensor | None, list[tuple[int, Unreadable]]]
"""Numbers of images; these, (N, C, H, W), where there are any; and the numbers of others, with why they are missing."""


@dataclass(frozen=True)
class Preparation:
    """What is done to an image file.

    Attributes:
        shape: of what comes out: C, which is 1 or 3, H and W.
        centred: how a folder's images were resized and cut; None where there was no folder.
    """

    shape: tuple[int, int, int]
    centred: Decoding | None

    def prepare(self, path: str) -> Tensor | Unreadable:
        """The image in a file, uint8 (H, W, C)."""
        channels, height, width = self.shape
        decoding = self.centred or Decoding(max(height, width), None)
        image = decoding.decode(path)
        if isinstance(image, Unreadable):
            return image
        if self.centred is None:
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image) if channels == 3 else as_grey(image))


def preparation_of(config: TrainConfig, shape: Sequence[int], what: Path) -> Preparation:
    """How images are prepared for a network.

    Args:
        config: the settings that it was trained with.
        shape: of its input.
        what: how errors call it.

    Raises:
        ConfigError: for networks of images that are neither grey nor RGB.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise ConfigError(f"{what} takes images of {channels} channels, and image files have 1 or 3: use it from Python, on arrays")
    return Preparation((channels, height, width), centred_at(height) if config.dataset == "folder" else None)


class NewImages:
    """Batches of image files."""

    def __init__(self, paths: Sequence[str], preparation: Preparation, statistics: Statistics, device: torch.device) -> None:
        """Remember where they are; no file is opened."""
        self.paths = paths
        self._preparation = preparation
        self._normalize = Normalizer(statistics, device)
        self.device = device

    def batches(self, batch_size: int, *, workers: int, channels_last: bool) -> Iterator[Numbered]:
        """All images in order, float32 and on the device; no more workers are started than there are batches."""
        spans = [range(first, min(first + batch_size, len(self.paths))) for first in range(0, len(self.paths), batch_size)]
        images = _Prepared(self.paths, self._preparation)
        workers = min(workers, len(spans)) if len(spans) > 1 else 0
        for numbers, pixels, unreadable in in_workers(images, spans, _collate, workers=workers, pinned=self.device.type == "cuda"):
            if pixels is None:
                yield numbers, None, unreadable
                continue
            moved = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # channels-last, as decoders give them
            yield numbers, self._normalize(moved if channels_last else moved.contiguous()), unreadable


class _Prepared(Dataset[tuple[int, Tensor | Unreadable]]):
    def __init__(self, paths: Sequence[str], preparation: Preparation) -> None:
        self._paths = paths
        self._preparation = preparation

    def __getitem__(self, number: int) -> tuple[int, Tensor | Unreadable]:
        return number, self._preparation.prepare(self._paths[number])


def _collate(items: list[tuple[int, Tensor | Unreadable]]) -> Numbered:
    """A batch of those that could be read, uint8 (N, H, W, C), and the others."""
    images = [(number, image) for number, image in items if isinstance(image, Tensor)]
    unreadable = [(number, image) for number, image in items if isinstance(image, Unreadable)]
    return [number for number, _ in images], torch.stack([image for _, image in images]) if images else None, unreadable
