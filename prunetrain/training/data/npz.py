"""Data sets in one .npz file, someone's own or the bundled digits.

In: arrays x_train, y_train, x_test, y_test; x uint8 of shape (N, H, W) or (N, H, W, C) with 1 to 16 channels last, y whole numbers
0..K-1 of shape (N,). Out: an `InMemory` source. Nothing in the file is unpickled.

Images move by up to an eighth of their side; those of three channels are taken for photographs and mirrored too.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunetrain.config import TrainConfig
from prunetrain.errors import DataError
from prunetrain.training.data.augmentation import Augmentation
from prunetrain.training.data.base import Split, Statistics, one_line
from prunetrain.training.data.memory import InMemory

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MAX_CHANNELS = 16
DIGITS = Path(__file__).with_name("digits.npz")
DIGITS_STATISTICS = Statistics(mean=(0.3049,), std=(0.3757,))


def load(config: TrainConfig, device: torch.device) -> InMemory:
    """The file that `data_dir` names."""
    train, val = read(Path(config.data_dir))
    channels, height, width = train.images.shape[1:]
    natural = Augmentation.natural(height, width)
    return InMemory(
        train,
        val,
        class_names=[str(label) for label in range(int(train.labels.max()) + 1)],
        statistics=Statistics.of(train.images),
        augmentation=Augmentation(natural.padding, flip=channels == 3) if config.augment else None,
        seed=config.seed,
        device=device,
    )


def load_digits(config: TrainConfig, device: torch.device) -> InMemory:
    """1,797 real 8x8 images that ship with the package; digits.LICENSE.md names their source."""
    train, val = read(DIGITS)
    return InMemory(
        train,
        val,
        class_names=[str(digit) for digit in range(10)],
        statistics=DIGITS_STATISTICS,
        augmentation=Augmentation(padding=1, flip=False) if config.augment else None,
        seed=config.seed,
        device=device,
    )


def read(path: Path) -> tuple[Split, Split]:
    """Training and validation images of a file.

    Raises:
        DataError: when the file is absent, is no .npz file, or its arrays are not what this module's docstring says.
    """
    arrays = _read_arrays(path)
    for split in ("train", "test"):
        _check_images(path, f"x_{split}", arrays[f"x_{split}"])
        _check_labels(path, f"y_{split}", arrays[f"y_{split}"], images=len(arrays[f"x_{split}"]))
    _check_agreement(path, arrays)
    return _split(arrays["x_train"], arrays["y_train"]), _split(arrays["x_test"], arrays["y_test"])


def _read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if path.is_dir():
        raise DataError(f"{path} is a folder: name the .npz file with --data-dir")
    if not path.exists():
        raise DataError(f"{path} does not exist: name an .npz file with --data-dir")
    example = ", ".join(f"{name}=..." for name in ARRAYS)
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz file, or a damaged one: write it with numpy.savez(path, {example})")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file.files}
    except Exception as error:  # numpy and zipfile raise anything on damaged files
        raise DataError(f"{path} cannot be read ({one_line(error)}): write it again with numpy.savez(path, {example})") from error
    missing = [name for name in ARRAYS if not isinstance(arrays.get(name), np.ndarray)]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: write it with numpy.savez(path, {example})")
    return arrays


def _check_images(path: Path, name: str, x: np.ndarray[Any, Any]) -> None:
    if x.dtype != np.uint8:
        raise DataError(f"{path}: {name} is {x.dtype}: store pixels as uint8, 0 to 255")
    layout = f"give it the shape (N, H, W) or (N, H, W, C) with 1 to {MAX_CHANNELS} channels last"
    if x.ndim not in (3, 4) or (x.ndim == 4 and not 1 <= x.shape[3] <= MAX_CHANNELS):
        raise DataError(f"{path}: {name} has the shape {x.shape}: {layout}")
    if x.size == 0:
        raise DataError(f"{path}: {name} holds no pixels, its shape is {x.shape}: {layout}")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[2] == x.shape[3] != x.shape[1]:
        raise DataError(f"{path}: {name} has its channels first, its shape is {x.shape}: {layout}")


def _check_labels(path: Path, name: str, y: np.ndarray[Any, Any], *, images: int) -> None:
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{path}: {name} is {y.dtype}: store labels as whole numbers from 0")
    if y.ndim != 1:
        raise DataError(f"{path}: {name} has the shape {y.shape}: give it the shape (N,), one label an image")
    if len(y) != images:
        raise DataError(f"{path}: {name} has {len(y):,} labels for {images:,} images: give one label an image")
    if y.min() < 0:
        raise DataError(f"{path}: {name} holds the label {y.min()}: number the classes from 0")


def _check_agreement(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    train, test = arrays["x_train"], arrays["x_test"]
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{path}: images of x_train are {train.shape[1:]}, of x_test {test.shape[1:]}: give both one shape")
    classes = np.unique(arrays["y_train"])
    if len(classes) == 1:
        raise DataError(f"{path}: y_train holds the label {classes[0]} only: training needs two classes or more")
    if classes[-1] != len(classes) - 1:
        unused = int(np.flatnonzero(classes != np.arange(len(classes)))[0])
        raise DataError(f"{path}: y_train goes up to {classes[-1]} but never holds {unused}: number its classes 0 to {len(classes) - 1}")
    if arrays["y_test"].max() >= len(classes):
        raise DataError(
            f"{path}: y_test holds the label {arrays['y_test'].max()}, y_train only 0 to {len(classes) - 1}: give both the same classes"
        )


def _split(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Split:
    if x.ndim == 3:
        x = x[..., None]
    return Split(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))), torch.from_numpy(y.astype(np.int64)))
