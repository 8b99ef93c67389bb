"""Preparing images from outside any data set for a trained network.

In: files, and the settings that the network was trained with. Out: normalised batches on a device, and the files that cannot be read.

For a network trained on a folder, images are prepared as that folder's were for validation. Arrays, digits and CIFAR have images of one
size; for a network trained on these, the largest centre crop of that shape is resized to it, and turned grey if the data set is grey.
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
from prunetrain.training.data.folder import as_grey, centre_crop_decoding
from prunetrain.training.data.workers import load_in_workers

NumberedBatch = tuple[list[int], Tensor | None, list[tuple[int, Unreadable]]]
"""Indices of images; these images, (N, C, H, W), or None without any; and the indices of unreadable ones, with the reasons."""


@dataclass(frozen=True)
class Preparation:
    """How an image file becomes a network's input.

    Attributes:
        shape: of the result: C, which is 1 or 3, H and W.
        centred: how a folder's images were resized and cropped; None if the network was not trained on a folder.
    """

    shape: tuple[int, int, int]
    centred: Decoding | None

    def prepare(self, path: str) -> Tensor | Unreadable:
        """Read the image in a file, uint8 (H, W, C)."""
        channels, height, width = self.shape
        decoding = self.centred or Decoding(max(height, width), None)
        image = decoding.decode(path)
        if isinstance(image, Unreadable):
            return image
        if self.centred is None:
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image) if channels == 3 else as_grey(image))


def preparation_of(config: TrainConfig, shape: Sequence[int], what: Path) -> Preparation:
    """Choose how images are prepared for a network.

    Args:
        config: the settings that it was trained with.
        shape: of its input.
        what: its name in error messages.

    Raises:
        ConfigError: for a network whose images are neither grey nor RGB.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise ConfigError(f"{what} takes images of {channels} channels, but image files have 1 or 3: use it from Python, on arrays")
    return Preparation((channels, height, width), centre_crop_decoding(height) if config.dataset == "folder" else None)


class NewImages:
    """Batches of image files."""

    def __init__(self, paths: Sequence[str], preparation: Preparation, statistics: Statistics, device: torch.device) -> None:
        """Store the paths; no file is opened."""
        self.paths = paths
        self._preparation = preparation
        self._normalize = Normalizer(statistics, device)
        self.device = device

    def batches(self, batch_size: int, *, workers: int, channels_last: bool) -> Iterator[NumberedBatch]:
        """Yield all images in order, float32 and on the device, with at most one worker per batch."""
        spans = [range(first, min(first + batch_size, len(self.paths))) for first in range(0, len(self.paths), batch_size)]
        images = _Prepared(self.paths, self._preparation)
        workers = min(workers, len(spans)) if len(spans) > 1 else 0
        for numbers, pixels, unreadable in load_in_workers(images, spans, _collate, workers=workers, pinned=self.device.type == "cuda"):
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


def _collate(items: list[tuple[int, Tensor | Unreadable]]) -> NumberedBatch:
    """Stack the images that could be read into a batch, uint8 (N, H, W, C), and list the others."""
    images = [(number, image) for number, image in items if isinstance(image, Tensor)]
    unreadable = [(number, image) for number, image in items if isinstance(image, Unreadable)]
    return [number for number, _ in images], torch.stack([image for _, image in images]) if images else None, unreadable
