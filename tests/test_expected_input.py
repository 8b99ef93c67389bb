"""What a network is said to expect is what the data pipeline gives it, and what the documents say."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from datafiles import folder_settings, load, write_images, write_mnist
from PIL import Image

from prunetrain.config import TrainConfig
from prunetrain.training.data import DATASETS
from prunetrain.training.data.fake import UNIFORM
from prunetrain.training.data.folder import GREY, IMAGENET
from prunetrain.training.data.folder_scan import EXTENSIONS
from prunetrain.training.data.npz import DIGITS_STATISTICS
from prunetrain.training.data.public import PUBLIC_SETS
from prunetrain.training.expected_input import expected_input

FILES = (Path(__file__).parent.parent / "docs" / "files.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("side", "resized"), [(8, 8), (64, 64), (70, 80)])
def test_images_of_a_folder(side: int, resized: int, tmp_path: Path) -> None:
    """Prepared with torchvision as it says, the first validation image is the one that the network was validated on."""
    settings = folder_settings(write_images(tmp_path, size=(100, 90)), image_size=side)
    source = load(**settings)
    expected = expected_input((3, side, side), TrainConfig(**settings), ["cat", "dog"], source.statistics.to_dict())
    assert (expected["resize"], expected["crop"], expected["class_names"]) == (resized, side, ["cat", "dog"])
    transforms = torchvision.transforms
    prepare = transforms.Compose([transforms.Resize(expected["resize"]), transforms.CenterCrop(expected["crop"])])
    with Image.open(tmp_path / "val" / "cat" / "2.png") as image:
        pixels = torch.from_numpy(np.array(prepare(image.convert(expected["channels"]))) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(expected[key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std"))
    images, _ = next(source.val_batches(2))
    torch.testing.assert_close(images[1], ((pixels - mean) / std).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["digits", "fake", "mnist"])
def test_levels_of_data_in_memory(name: str, tmp_path: Path) -> None:
    source = load(dataset=name, data_dir=str(write_mnist(tmp_path)), image_size=8, batch_size=4)
    expected = expected_input(source.input_shape, TrainConfig(dataset=name), [], source.statistics.to_dict())
    levels = torch.cat([images for images, _ in source.val_batches(64)])
    mean, std = (torch.tensor(expected[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    pixels = (levels * std + mean) * 255
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-3)
    assert (pixels.min().round(), pixels.max().round()) == (0, 255)


STATISTICS = {
    "digits": DIGITS_STATISTICS,
    "folder": IMAGENET,
    "fake": UNIFORM,
    **{name: known.statistics for name, known in PUBLIC_SETS.items()},
}


def test_of_channels_that_are_no_colours() -> None:
    statistics = {"mean": [0.1, 0.2], "std": [0.3, 0.4]}
    expected = expected_input((2, 8, 8), TrainConfig(dataset="npz"), ["a", "b"], statistics)
    assert expected == {"input_shape": [2, 8, 8], **statistics, "class_names": ["a", "b"]}


def test_documents_have_those_of_grey_folders() -> None:
    assert f"| `folder` with `--grey` | grey | {GREY.mean[0]} | {GREY.std[0]} |" in FILES.splitlines()
    weights = np.array([0.299, 0.587, 0.114])
    assert (round(weights @ IMAGENET.mean, 3), round(weights @ IMAGENET.std, 3)) == (GREY.mean[0], GREY.std[0])


def test_documents_have_the_endings_of_images() -> None:
    *all_but_one, last = (f"`{ending}`" for ending in EXTENSIONS)
    assert f"{', '.join(all_but_one)} or {last}" in FILES


@pytest.mark.parametrize("name", DATASETS)
def test_documents_have_the_numbers(name: str) -> None:
    (row,) = [line for line in FILES.splitlines() if line.startswith(f"| `{name}` | ")]
    if name == "npz":  # someone's own
        return
    expected = expected_input((), TrainConfig(dataset=name), [], STATISTICS[name].to_dict())
    numbers = [", ".join(map(str, expected[key])) for key in ("mean", "std")]
    assert row == f"| `{name}` | {' | '.join([expected['channels'], *numbers])} |"
