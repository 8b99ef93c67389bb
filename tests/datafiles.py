"""Data sets as tests need them: written to files, loaded, refused."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from PIL import Image
from torch import Tensor

from prunetrain.config import TrainConfig
from prunetrain.errors import DataError
from prunetrain.paths import RunPaths
from prunetrain.training.data import DataSource, load_data
from prunetrain.training.run import start_run

CPU = torch.device("cpu")
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12's word on DataLoader


def load(**settings: Any) -> DataSource:
    return load_data(TrainConfig(**settings), CPU)


def error(**settings: Any) -> str:
    """The message of the DataError that loading, or else one pass over the data, raises."""
    with pytest.raises(DataError) as caught:
        source = load(**settings)
        list(source.train_batches(0, settings.get("batch_size", 32)))
        list(source.val_batches(32))
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_same(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> None:
    assert len(left) == len(right) > 0
    for (x, y), (other_x, other_y) in zip(left, right, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def levels(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def good_arrays(*shape: int, classes: int = 4) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {
        "x_train": levels(rng, 40, *shape),
        "y_train": np.arange(40) % classes,
        "x_test": levels(rng, 10, *shape),
        "y_test": np.arange(10) % classes,
    }


def write_npz(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def write_images(root: Path, *, train: int = 6, val: int = 3, size: tuple[int, int] = (12, 10)) -> Path:
    """Noise in ImageNet's layout, classes cat and dog; one image is grey, one in a deeper folder."""
    rng = np.random.default_rng(1)
    for split, count in (("train", train), ("val", val)):
        for name in ("cat", "dog"):
            folder = root / split / name
            (folder / "deeper").mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(levels(rng, size[1], size[0], 3))
                (image.convert("L") if i == 0 else image).save(folder / ("deeper" if i == 1 else ".") / f"{i}.png")
    return root


def write_mnist(root: Path, folder: str = "MNIST") -> Path:
    """Files as torchvision finds them: big-endian header, then bytes."""
    rng = np.random.default_rng(2)
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 20), ("t10k", 10)):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, count, 28, 28) + levels(rng, count, 28, 28).tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + bytes(i % 10 for i in range(count)))
    return root


def folder_settings(root: Path, **more: Any) -> dict[str, Any]:
    return {"dataset": "folder", "data_dir": str(root), "image_size": 8, "workers": 0, "batch_size": 4} | more


def run_on_cats_and_dogs(folder: Path, **changes: Any) -> RunPaths:
    """A run of one epoch on `write_images`: six images a class for training and three for validation."""
    config = runs.settings(folder, folder, **folder_settings(write_images(folder / "images")), epochs=1, name="x", **changes)
    return start_run(config, runs.Recorder()).run
