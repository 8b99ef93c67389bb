"""Folders of images in ImageNet's layout, decoded by worker processes.

In: files. Out: a `DataSource`. Workers give square uint8 images; normalisation runs on the device, a batch at a time.

Large images (over 64 pixels) are cropped as in Szegedy et al. 2014 (arXiv 1409.4842, section 6): a window of 8% to 100% of the area, side
ratio 3/4 to 4/3, resized to `image_size`, mirrored half of the time; for validation the shorter side is resized to image_size * 256 / 224
and the centre is taken. Small images are resized to `image_size` and then moved and mirrored on the device, as those in memory are.
Each image's randomness depends on (seed, epoch, position in the epoch), so neither the number of workers nor a restart changes it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunetrain.config import TrainConfig
from prunetrain.errors import DataError
from prunetrain.training.data.augmentation import Augmentation
from prunetrain.training.data.base import WHOLE, Batch, Normalizer, Share, Statistics, epoch_generator, one_line
from prunetrain.training.data.folder_scan import Samples, scan
from prunetrain.training.data.worker_signals import held_back, leave_signals_to_parent

IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SMALL_SIDE = 64  # pixels; up to here images are treated as CIFAR's are

Key = tuple[int, int]  # position in the epoch, number of the image


class FolderSource:
    """A `DataSource` over files."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        """List the files; none is opened yet."""
        index = scan(Path(config.data_dir))
        side = config.image_size
        self.input_shape = (3, side, side)
        self.class_names = index.class_names
        self.num_classes = len(index.class_names)
        self.num_train = len(index.train.paths)
        self.num_val = len(index.val.paths)
        self._index = index
        small = side <= SMALL_SIDE
        self._resized_side = side if small else side * 256 // 224  # of the shorter side before the centre crop
        self._augmentation = Augmentation.natural(side, side) if config.augment and small else None
        self._window_seed = config.seed if config.augment and not small else None
        self._normalize = Normalizer(IMAGENET, device)
        self._seed = config.seed
        self._workers = config.workers
        self._device = device

    def train_batches(self, epoch: int, batch_size: int, *, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Shuffled, augmented batches from number `start` on; images of skipped batches are not opened."""
        generator = epoch_generator(self._seed, epoch)
        order = torch.randperm(self.num_train, generator=generator).tolist()
        moves = self._augmentation.draw(self.num_train, generator).to(self._device) if self._augmentation else None
        seed = None if self._window_seed is None else (self._window_seed, epoch)
        spans = [share.of(step * batch_size, (step + 1) * batch_size) for step in range(start, self.steps_per_epoch(batch_size))]
        keys = ([(position, order[position]) for position in range(span.start, span.stop)] for span in spans)
        for span, (images, labels) in zip(spans, self._load(self._index.train, keys, seed), strict=True):
            yield self._normalize(images if moves is None else moves[span].apply(images)), labels

    def val_batches(self, batch_size: int, *, share: Share = WHOLE) -> Iterator[Batch]:
        """Every validation image once, in order."""
        spans = (share.of(first, min(first + batch_size, self.num_val)) for first in range(0, self.num_val, batch_size))
        keys = ([(i, i) for i in range(span.start, span.stop)] for span in spans if span.start < span.stop)
        for images, labels in self._load(self._index.val, keys, None):
            yield self._normalize(images), labels

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of complete batches in the training images."""
        return self.num_train // batch_size

    def _load(self, samples: Samples, keys: Iterable[list[Key]], window_seed: tuple[int, int] | None) -> Iterator[Batch]:
        loader = DataLoader(
            ImageFiles(samples, self.input_shape[1], self._resized_side, window_seed),
            batch_sampler=keys,
            num_workers=self._workers,
            collate_fn=_collate,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # the loader would draw from torch's global state otherwise
        )
        with held_back():
            batches = iter(loader)
        for batch in batches:
            if isinstance(batch, Unreadable):
                raise DataError(batch.message)
            images, labels = batch
            yield images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)


@dataclass(frozen=True)
class Unreadable:
    """Why an image could not be read. Returned, not raised: an exception would arrive from a worker with its traceback as message."""

    message: str


class ImageFiles(Dataset[tuple[Tensor, int] | Unreadable]):
    """Decodes images: uint8 (3, side, side). A random window of each where there is a seed, its centre where there is none."""

    def __init__(self, samples: Samples, side: int, resized_side: int, window_seed: tuple[int, int] | None) -> None:
        """Seed is (seed, epoch); `resized_side` is what the shorter side becomes before the centre is cut."""
        self._samples = samples
        self._side = side
        self._resized_side = resized_side
        self._window_seed = window_seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | Unreadable:
        """Image and label, or why there is none."""
        position, number = key
        path = self._samples.paths[number]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # Pillow's decoders raise anything on damaged files
            return Unreadable(f"{path} cannot be read as an image ({one_line(error)}): replace or remove it")
        if self._window_seed is None:
            image = centre(image, self._side, self._resized_side)
        else:
            image = random_window(image, self._side, np.random.default_rng((*self._window_seed, position)))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), self._samples.labels[number]


def centre(image: Image.Image, side: int, resized_side: int) -> Image.Image:
    """Resize the shorter side to `resized_side`, then cut the middle `side` x `side`; pixel for pixel as torchvision does."""
    width, height = image.size
    shorter = min(width, height)
    if shorter != resized_side:
        width, height = (resized_side * length // shorter for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def random_window(image: Image.Image, side: int, random: np.random.Generator) -> Image.Image:
    """A random part of the image, resized to `side` x `side` and mirrored half of the time; torchvision's RandomResizedCrop and flip."""
    left, top, width, height = _draw_window(*image.size, random)
    image = image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def _draw_window(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(width - w + 1)), int(random.integers(height - h + 1)), w, h
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))  # the middle, as near to square as allowed
    return (width - w) // 2, (height - h) // 2, w, h


def _collate(items: list[tuple[Tensor, int] | Unreadable]) -> Batch | Unreadable:
    images, labels = [], []
    for item in items:
        if isinstance(item, Unreadable):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)


def load(config: TrainConfig, device: torch.device) -> FolderSource:
    """The folder that `data_dir` names."""
    return FolderSource(config, device)
