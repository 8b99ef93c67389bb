"""Data sets in one .npz file: the user's own, or the bundled digits.

In: arrays x_train, y_train, x_test, y_test; x uint8 of shape (N, H, W) or (N, H, W, C) with 1 to 16 channels last, y integers
0..K-1 of shape (N,). With `--val-split` the first two are enough. Out: an `InMemory` source. Nothing in the file is unpickled.

Augmentation moves images by up to an eighth of their side; those with three channels are taken for photographs and mirrored too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunetrain.config import TrainConfig
from prunetrain.errors import DataError, system_reason
from prunetrain.foreign.arrays import ArrayFile, ArrayHeader
from prunetrain.foreign.memory import available_memory, format_bytes
from prunetrain.foreign.opening import open_regular
from prunetrain.foreign.refusal import RefusedFileError, shortened
from prunetrain.training.data.augmentation import Augmentation
from prunetrain.training.data.base import Split, Statistics, named_missing
from prunetrain.training.data.holding_out import hold_out
from prunetrain.training.data.memory import InMemory

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MAX_CHANNELS = 16
_SAVE_EXAMPLE = f"numpy.savez(path, {', '.join(f'{name}=...' for name in ARRAYS)})"
_COPIES = 3  # of an array in memory at once: as read, with channels first, and in 64 bits for statistics and labels
DIGITS = Path(__file__).with_name("digits.npz")
DIGITS_STATISTICS = Statistics(mean=(0.3049,), std=(0.3757,))


def load(config: TrainConfig, device: torch.device) -> InMemory:
    """Load the file that `data_dir` names."""
    train, val = read(Path(config.data_dir), val_split=config.val_split)
    channels, height, width = train.images.shape[1:]
    natural = Augmentation.natural(height, width)
    return InMemory(
        config,
        device,
        train,
        val,
        class_names=[str(label) for label in range(int(train.labels.max()) + 1)],
        statistics=Statistics.of(train.images),
        augmentation=Augmentation(natural.padding, flip=channels == 3),
    )


def load_digits(config: TrainConfig, device: torch.device) -> InMemory:
    """Load the 1,797 real 8x8 images that ship with the package; digits.LICENSE.md names their source."""
    train, val = read(DIGITS, val_split=config.val_split)
    return InMemory(
        config,
        device,
        train,
        val,
        class_names=[str(digit) for digit in range(10)],
        statistics=DIGITS_STATISTICS,
        augmentation=Augmentation(padding=1, flip=False),
    )


def read(path: Path, *, val_split: float = 0.0) -> tuple[Split, Split]:
    """Read the training and validation images of a file. Shapes, types and sizes are checked before any array is read.

    Args:
        path: the file.
        val_split: share of the training images to hold out for validation; 0: the file's own.

    Raises:
        DataError: when the file is absent, is not an .npz file, is too large for this machine's memory, or its arrays are not as this
            module's docstring says.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: give --data-dir the .npz file in it")
    if not path.exists():
        raise DataError(f"{named_missing(path)} does not exist: give --data-dir an .npz file")
    try:
        with open_regular(path) as file:
            arrays = _read_arrays(path, ArrayFile(file), ("train",) if val_split else ("train", "test"))
    except OSError as error:
        raise DataError(f"{path}: {system_reason(error)}") from error
    except RefusedFileError as refused:
        raise DataError(f"{path} cannot be read as .npz ({refused}): write it with {_SAVE_EXAMPLE}") from refused
    _check_values(path, arrays)
    train = _split(arrays["x_train"], arrays["y_train"])
    return hold_out(train, val_split) if val_split else (train, _split(arrays["x_test"], arrays["y_test"]))


def _read_arrays(path: Path, file: ArrayFile, splits: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    wanted = [f"{kind}_{split}" for split in splits for kind in "xy"]
    headers = file.headers(wanted)
    missing = [name for name in wanted if name not in headers]
    if missing:
        holding = " or hold out some of x_train with --val-split 0.2" if missing == ["x_test", "y_test"] else ""
        raise DataError(f"{path} lacks {', '.join(missing)}: write it with {_SAVE_EXAMPLE}{holding}")
    for split in splits:
        _check_images(path, f"x_{split}", headers[f"x_{split}"])
        _check_labels(path, f"y_{split}", headers[f"y_{split}"], images=headers[f"x_{split}"].shape[0])
    shapes = [headers[f"x_{split}"].shape[1:] for split in splits]
    if len(set(shapes)) > 1:
        raise DataError(f"{path}: images of x_train are {shapes[0]}, of x_test {shapes[1]}: give both the same shape")
    needed = sum(_COPIES * header.nbytes for header in headers.values())
    if needed > (available := available_memory()):
        raise DataError(
            f"{path}: its arrays need {format_bytes(needed)} of memory, and only {format_bytes(available)} is free: store fewer images"
        )
    return {name: file.read(name) for name in wanted}


def _check_images(path: Path, name: str, x: ArrayHeader) -> None:
    if x.dtype != np.uint8:
        raise DataError(f"{path}: {name} is {shortened(str(x.dtype), 60)}: store pixels as uint8, 0 to 255")
    layout = f"give it the shape (N, H, W) or (N, H, W, C) with 1 to {MAX_CHANNELS} channels last"
    if len(x.shape) not in (3, 4) or (len(x.shape) == 4 and not 1 <= x.shape[3] <= MAX_CHANNELS):
        raise DataError(f"{path}: {name} has the shape {x.shape}: {layout}")
    if x.nbytes == 0:
        raise DataError(f"{path}: {name} holds no pixels, its shape is {x.shape}: {layout}")
    if len(x.shape) == 4 and x.shape[1] in (1, 3) and x.shape[2] == x.shape[3] != x.shape[1]:
        raise DataError(f"{path}: {name} has its channels first, in the shape {x.shape}: {layout}")


def _check_labels(path: Path, name: str, y: ArrayHeader, *, images: int) -> None:
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{path}: {name} is {shortened(str(y.dtype), 60)}: store labels as whole numbers from 0")
    if len(y.shape) != 1:
        raise DataError(f"{path}: {name} has the shape {y.shape}: give it the shape (N,), one label per image")
    if y.shape[0] != images:
        raise DataError(f"{path}: {name} has {y.shape[0]:,} labels for {images:,} images: give one label per image")


def _check_values(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    for name in ("y_train", "y_test"):
        if name in arrays and arrays[name].min() < 0:
            raise DataError(f"{path}: {name} holds the label {arrays[name].min()}: number the classes from 0")
    classes = np.unique(arrays["y_train"])
    if len(classes) == 1:
        raise DataError(f"{path}: y_train holds only the label {classes[0]}: training needs two classes or more")
    if classes[-1] != len(classes) - 1:
        unused = int(np.flatnonzero(classes != np.arange(len(classes)))[0])
        raise DataError(f"{path}: y_train goes up to {classes[-1]} but never holds {unused}: number its classes 0 to {len(classes) - 1}")
    if "y_test" in arrays and arrays["y_test"].max() >= len(classes):
        raise DataError(
            f"{path}: y_test holds the label {arrays['y_test'].max()}, y_train only 0 to {len(classes) - 1}: give both the same classes"
        )


def _split(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Split:
    if x.ndim == 3:
        x = x[..., None]
    return Split(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))), torch.from_numpy(y.astype(np.int64)))
