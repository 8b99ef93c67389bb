"""Folders of images in ImageNet's layout, decoded by worker processes, or once and cached (`image_cache.py`).

In: files. Out: a `DataSource`. Workers make batches of square uint8 images, channels last, in shared memory. They are copied to the device
(to a GPU from pinned memory) and normalised there, a batch at a time. `--grey` turns three channels into one after all other decoding.

Large images (over 64 pixels) are cropped as in Szegedy et al. 2014 (arXiv 1409.4842, section 6): a window of 8% to 100% of the area, with
an aspect ratio of 3/4 to 4/3, is resized to `image_size` and mirrored half of the time. For validation the shorter side is resized to
image_size * 256 / 224 and the centre is cut. Small images are resized to `image_size` and then moved and mirrored on the device, like those
in memory. An image's randomness depends on (seed, epoch, position in the epoch), so the number of workers and restarts do not change it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from prunetrain.config import TrainConfig
from prunetrain.training.data.augmentation import Augmentation
from prunetrain.training.data.base import SMALL_SIDE, WHOLE, Batch, Normalizer, Say, Share, Statistics, epoch_generator, ignore_line
from prunetrain.training.data.decoding import Decoding, ImageFiles, Unreadable, random_resized_crop
from prunetrain.training.data.folder_scan import FolderIndex, Samples, passed_over, scan, scan_for_evaluation
from prunetrain.training.data.image_cache import DecodedImages, load_or_cache
from prunetrain.training.data.workers import decoder_count, load_in_workers

IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
GREY = Statistics(mean=(0.459,), std=(0.226,))  # the mean is that of IMAGENET by the weights of `as_grey`
_CACHE_HINT = "; prunetrain train --cache FOLDER finds such files before it trains"

Key = tuple[int, int]  # position in the epoch, index of the image


def centre_crop_decoding(side: int) -> Decoding:
    """How files become images of `side` x `side` without randomness."""
    return Decoding(side, side if side <= SMALL_SIDE else side * 256 // 224)


class FolderSource:
    """A `DataSource` over files."""

    def __init__(self, config: TrainConfig, index: FolderIndex, device: torch.device, say: Say) -> None:
        """Take the files of an index. None is opened yet, unless they are cached first, which `say` reports."""
        side = config.image_size
        self.input_shape = (1 if config.grey else 3, side, side)
        self.class_names = index.class_names
        self.num_classes = len(index.class_names)
        self.num_train = len(index.train.paths)
        self.num_val = len(index.val.paths)
        self.train_counts, self.val_counts = (
            tuple(np.bincount(split.labels, minlength=self.num_classes).tolist()) for split in (index.train, index.val)
        )
        small = side <= SMALL_SIDE
        centred = centre_crop_decoding(side)
        self._augmentation = Augmentation.natural(side, side) if config.augment and small else None
        self._window_seed = config.seed if config.augment and not small else None
        windowed = Decoding(side, None)
        self._workers = decoder_count(config.workers, device)
        kept: dict[str, Any] = {"cache": config.cache, "workers": self._workers, "say": say}
        self._train = _SplitImages.of(index.train, centred if self._window_seed is None else windowed, "train", **kept)
        self._val = _SplitImages.of(index.val, centred, "val", **kept)
        self._seed = config.seed
        self._grey = config.grey
        self._cached = bool(config.cache)
        self._device = device
        self._channels_last = config.channels_last
        self.normalize_by(GREY if config.grey else IMAGENET)

    def train_batches(self, epoch: int, batch_size: int, *, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield shuffled, augmented batches from number `start` on; images of skipped batches are not opened."""
        generator = epoch_generator(self._seed, epoch)
        order = torch.randperm(self.num_train, generator=generator).tolist()
        moves = self._augmentation.draw(self.num_train, generator).to(self._device) if self._augmentation else None
        seed = None if self._window_seed is None else (self._window_seed, epoch)
        spans = [share.of(step * batch_size, (step + 1) * batch_size) for step in range(start, self.steps_per_epoch(batch_size))]
        keys = ([(position, order[position]) for position in range(span.start, span.stop)] for span in spans)
        for span, (images, labels) in zip(spans, self._load(self._train, keys, seed), strict=True):
            yield self._normalize(images if moves is None else moves[span].apply(images)), labels

    def val_batches(self, batch_size: int, *, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield every validation image once, in order."""
        spans = (share.of(first, min(first + batch_size, self.num_val)) for first in range(0, self.num_val, batch_size))
        keys = ([(i, i) for i in range(span.start, span.stop)] for span in spans if span.start < span.stop)
        for images, labels in self._load(self._val, keys, None):
            yield self._normalize(images), labels

    def normalize_by(self, statistics: Statistics) -> None:
        """Normalise by these statistics from now on."""
        self.statistics = statistics
        self._normalize = Normalizer(statistics, self._device)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of complete batches in the training images."""
        return self.num_train // batch_size

    def _load(self, half: "_SplitImages", keys: Iterable[list[Key]], window_seed: tuple[int, int] | None) -> Iterator[Batch]:
        """Yield batches on the device, uint8 (N, C, side, side) in the configured memory format."""
        if isinstance(half.images, DecodedImages) and window_seed is None:
            batches = self._pin_batches(_cached_batches(half.images, half.labels, keys, grey=self._grey))
        else:
            views = ImageDataset(half.images, half.labels, self.input_shape[1], window_seed, grey=self._grey)
            batches = self._decoded_batches(views, keys)
        for images, labels in batches:
            moved = images.to(self._device, non_blocking=True).permute(0, 3, 1, 2)  # channels-last, as decoders give them
            yield moved if self._channels_last else moved.contiguous(), labels.to(self._device, non_blocking=True)

    def _pin_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Put batches into pinned memory if the device is a GPU, which then copies them while this process continues."""
        return ((images.pin_memory(), labels.pin_memory()) for images, labels in batches) if self._device.type == "cuda" else batches

    def _decoded_batches(self, views: "ImageDataset", keys: Iterable[list[Key]]) -> Iterator[Batch]:
        """Yield batches from the workers, uint8 (N, side, side, C)."""
        for batch in load_in_workers(views, keys, _collate, workers=self._workers, pinned=self._device.type == "cuda"):
            if isinstance(batch, Unreadable):
                raise batch.error("" if self._cached else _CACHE_HINT)
            yield batch


@dataclass(frozen=True)
class _SplitImages:
    """The images of training or validation, and their labels."""

    images: ImageFiles | DecodedImages
    labels: tuple[int, ...]

    @classmethod
    def of(cls, samples: Samples, decoding: Decoding, split: str, *, cache: str, workers: int, say: Say) -> "_SplitImages":
        """Read from the cache, if one is asked for and has room; from the files otherwise."""
        files = ImageFiles(samples.paths, decoding)
        kept = load_or_cache(files, Path(cache), split, workers=workers, say=say) if cache else None
        return cls(kept or files, samples.labels)


def as_grey(image: Image.Image) -> np.ndarray[Any, Any]:
    """Convert an RGB image to one channel, uint8 (H, W, 1): 0.299 R + 0.587 G + 0.114 B, as in ITU-R 601 and Pillow."""
    return np.array(image.convert("L"))[..., None]


def _cached_batches(images: DecodedImages, labels: Sequence[int], keys: Iterable[list[Key]], *, grey: bool) -> Iterator[Batch]:
    """Yield batches of images that are cached at their final size: mere copies of memory, for which no worker is needed."""
    for batch in keys:
        numbers = [number for _, number in batch]
        squares = images.squares(numbers)
        if grey:  # all of them as one tall image
            count, side, _, _ = squares.shape
            squares = as_grey(Image.fromarray(squares.reshape(count * side, side, 3))).reshape(count, side, side, 1)
        yield torch.from_numpy(squares), torch.tensor([labels[number] for number in numbers])


class ImageDataset(Dataset[tuple[Tensor, int] | Unreadable]):
    """Images as the network sees them, uint8 (side, side, C); random windows if there is a seed."""

    def __init__(
        self,
        images: ImageFiles | DecodedImages,
        labels: Sequence[int],
        side: int,
        window_seed: tuple[int, int] | None,
        *,
        grey: bool = False,
    ) -> None:
        """Store the arguments; `window_seed` is (seed, epoch)."""
        self._images = images
        self._labels = labels
        self._side = side
        self._window_seed = window_seed
        self._grey = grey

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | Unreadable:
        """The image and its label, or why it cannot be read."""
        position, number = key
        image = self._images[number]
        if isinstance(image, Unreadable):
            return image
        if self._window_seed is not None:
            image = random_resized_crop(image, self._side, np.random.default_rng((*self._window_seed, position)))
        return torch.from_numpy(as_grey(image) if self._grey else np.array(image)), self._labels[number]


def _collate(items: list[tuple[Tensor, int] | Unreadable]) -> Batch | Unreadable:
    """Stack a batch, in shared memory if made by a worker; or return the first unreadable image."""
    images, labels = [], []
    for item in items:
        if isinstance(item, Unreadable):
            return item
        images.append(item[0])
        labels.append(item[1])
    return default_collate(images), torch.tensor(labels)


def load(config: TrainConfig, device: torch.device, say: Say = ignore_line) -> FolderSource:
    """Load the folder that `data_dir` names; `say` is called with lines about what is in it, and about its cache."""
    return _source(config, scan(Path(config.data_dir), config.val_split), device, say)


def load_for_evaluation(
    config: TrainConfig, classes: Sequence[str], what: Path, device: torch.device, say: Say = ignore_line
) -> FolderSource:
    """Load the folder that `data_dir` names, to evaluate a network with these classes; errors call the network `what`."""
    return _source(config, scan_for_evaluation(Path(config.data_dir), classes, what), device, say)


def _source(config: TrainConfig, index: FolderIndex, device: torch.device, say: Say) -> FolderSource:
    if index.others:
        say(passed_over(config.data_dir, index.others))
    return FolderSource(config, index, device, say)
