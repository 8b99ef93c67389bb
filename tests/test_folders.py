"""Folders of images: what is found, what comes out beside torchvision's, that workers change nothing, and what is said of broken ones."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from datafiles import CPU, FORKS, assert_same, error, folder_settings, levels, load, write_images
from PIL import Image
from torch.nn import functional as F

from prunetrain.config import TrainConfig
from prunetrain.training.data import load_data
from prunetrain.training.data import workers as data_workers
from prunetrain.training.data.decoding import centre_crop, random_resized_crop
from prunetrain.training.data.workers import decoder_count


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


def test_folder_finds_images_and_numbers_classes_by_name(images: Path) -> None:
    for hidden in ("train/.cache/x.png", "train/cat/._1.png", "val/dog/.trash/y.png", "train/cat/notes.txt"):
        (images / hidden).parent.mkdir(exist_ok=True)
        (images / hidden).write_bytes(b"no image")
    source = load(**folder_settings(images))
    assert (source.class_names, source.num_train, source.num_val) == (("cat", "dog"), 12, 6)
    labels = torch.cat([y for _, y in source.val_batches(4)])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_validation_classes_keep_the_numbers_of_training(images: Path) -> None:
    (images / "val" / "cat").rename(images / "elsewhere")
    source = load(**folder_settings(images))
    assert next(source.val_batches(8))[1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("side", [8, 65])
def test_grey_images_are_those_in_colour_weighed(side: int, images: Path) -> None:
    colour, grey = (load(**folder_settings(images, image_size=side, augment=False, grey=is_grey)) for is_grey in (False, True))
    assert grey.input_shape == (1, side, side)
    for split in ("train", "val"):
        left, right = (
            (source.val_batches if split == "val" else lambda n, s=source: s.train_batches(0, n))(4) for source in (colour, grey)
        )
        for (x, labels), (y, others) in zip(left, right, strict=True):
            assert torch.equal(labels, others)
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (colour.statistics.mean, colour.statistics.std))
            weighed = ((x * std + mean) * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
            found = y * grey.statistics.std[0] + grey.statistics.mean[0]
            torch.testing.assert_close(found, weighed, rtol=0, atol=0.6 / 255)  # a level is a whole number
            torch.testing.assert_close(found * 255, (found * 255).round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("asked", "device", "cores", "here", "number"),
    [
        (-1, "cpu", 64, "1", 2),
        (0, "cuda", 64, "1", 0),
        (5, "cpu", 2, "1", 5),
        (-1, "cuda", 8, "1", 7),
        (-1, "cuda", 32, "4", 7),
        (-1, "cuda", 2, "1", 2),
        (-1, "cuda", 64, "1", 12),
    ],
)
def test_a_gpu_has_as_many_workers_as_there_are_cores_for_it(
    monkeypatch: pytest.MonkeyPatch, *, asked: int, device: str, cores: int, here: str, number: int
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    monkeypatch.setattr(data_workers, "cores", lambda: cores)
    assert decoder_count(asked, torch.device(device)) == number


@FORKS
@pytest.mark.parametrize("image_size", [8, 65])
def test_workers_do_not_change_what_comes_out(image_size: int, images: Path) -> None:
    alone, two = (load(**folder_settings(images, image_size=image_size, workers=workers)) for workers in (0, 2))
    assert_same(list(alone.train_batches(1, 4, start=1)), list(two.train_batches(1, 4, start=1)))


def test_images_of_skipped_batches_are_not_opened(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = Image.open

    def counted(path: str) -> Image.Image:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(Image, "open", counted)
    assert len(list(load(**folder_settings(images)).train_batches(0, 4, start=2))) == 1
    assert len(opened) == len(set(opened)) == 4


@pytest.mark.parametrize(
    ("size", "side", "resized"), [((120, 75), 65, 74), ((40, 300), 65, 74), ((65, 65), 65, 65), ((12, 10), 8, 8), ((7, 9), 8, 8)]
)
def test_validation_images_equal_torchvisions(size: tuple[int, int], side: int, resized: int) -> None:
    image = Image.fromarray(levels(np.random.default_rng(5), size[1], size[0], 3))
    transform = torchvision.transforms.Compose([torchvision.transforms.Resize(resized), torchvision.transforms.CenterCrop(side)])
    np.testing.assert_array_equal(np.array(centre_crop(image, side, resized)), np.array(transform(image)))


def test_large_images_are_resized_by_256_over_224(tmp_path: Path) -> None:
    write_images(tmp_path, size=(100, 90))
    source = load(**folder_settings(tmp_path, image_size=70))
    x, _ = next(source.val_batches(6))
    with Image.open(tmp_path / "val" / "cat" / "2.png") as image:
        expected = torch.from_numpy(np.array(centre_crop(image, 70, 80)) / 255.0).permute(2, 0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(x[1], ((expected - mean.view(3, 1, 1)) / std.view(3, 1, 1)).float())


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (1, 1)])
def test_random_windows_are_parts_of_the_image(size: tuple[int, int]) -> None:
    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(1, 255, width).astype(np.uint8)
    ramp[..., 1] = np.linspace(1, 255, height).astype(np.uint8)[:, None]
    ramp[..., 2] = 9
    image = Image.fromarray(ramp)
    flips, widths = [], []
    for seed in range(60):
        window = np.array(random_resized_crop(image, 10, np.random.default_rng(seed))).astype(int)
        assert window.shape == (10, 10, 3)
        assert (window[..., 2] == 9).all()  # nothing from outside
        assert (np.diff(window[..., 1], axis=0) >= 0).all()  # never upside down
        across = np.diff(window[..., 0], axis=1)
        assert (across >= 0).all() or (across <= 0).all()
        flips.append(bool((across < 0).any()))
        widths.append(abs(int(window[0, -1, 0] - window[0, 0, 0])))
    if width > 1:
        assert 15 <= sum(flips) <= 45
        assert len(set(widths)) > 5


@pytest.mark.parametrize(("size", "box"), [((400, 20), (186, 0, 213, 20)), ((20, 400), (0, 186, 20, 213))])
def test_of_very_long_images_the_middle_is_taken(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    image = Image.fromarray(levels(np.random.default_rng(6), size[1], size[0], 3))
    middle = np.array(image.crop(box).resize((10, 10), Image.Resampling.BILINEAR))
    seen = [np.array(random_resized_crop(image, 10, np.random.default_rng(seed))) for seed in range(20)]
    assert {np.array_equal(window, middle) + 2 * np.array_equal(window, middle[:, ::-1]) for window in seen} == {1, 2}


def test_small_images_move_as_those_in_memory_do(images: Path) -> None:
    plain, moved = (load(**folder_settings(images, image_size=16, augment=augment)) for augment in (False, True))
    (x, _), (y, _) = (next(source.train_batches(2, 12)) for source in (plain, moved))
    black = -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
    padded = F.pad(x - black.view(3, 1, 1), (2, 2, 2, 2)) + black.view(3, 1, 1)
    windows = [padded[..., top : top + 16, left : left + 16] for top in range(5) for left in range(5)]
    windows += [window.flip(3) for window in windows]
    matches = torch.stack([torch.isclose(window, y, atol=1e-4).flatten(1).all(1) for window in windows])
    assert matches.any(0).all()
    assert matches[:25].any() and matches[25:].any()


def test_folder_errors(images: Path, tmp_path: Path) -> None:
    assert (
        error(**folder_settings(tmp_path / "no")) == f"{tmp_path}/no is not a folder: give --data-dir the folder that holds train/ and val/"
    )
    (images / "val" / "emu").mkdir()
    message = error(**folder_settings(images))
    assert message == f"{images}/val has classes that {images}/train lacks: emu; give both the same class folders"
    (images / "train" / "emu").mkdir()
    assert error(**folder_settings(images)).startswith(f"{images}/train/emu has no images: add some (.jpg, ")
    Image.new("RGB", (9, 9)).save(images / "train" / "emu" / "1.bmp")
    assert error(**folder_settings(images)).startswith(f"{images}/val/emu has no images")


def test_advice_on_a_folder_without_splits(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder meant is often the one above or below, or a split has another name."""

    def advice(path: Path | str) -> str:
        return error(**folder_settings(Path(path))).partition(": ")[2]

    hold_out = "hold out some of the images for validation with --val-split 0.2"
    for near in (tmp_path, images / "train", images / "val"):
        assert advice(near) == f"did you mean --data-dir {images}?"
    monkeypatch.chdir(images / "train")
    assert advice(".") == f"did you mean --data-dir {images}?"
    (images / "val").rename(images / "valid")
    for also_there in ("test", "Validation"):
        (images / also_there).mkdir()
        assert advice(images) == f"rename {images}/valid to {images}/val, or {hold_out}"
    (images / "train").rename(images / "Train")
    assert advice(images) == f"rename {images}/Train to {images}/train"
    assert advice(images / "Train") == f"{hold_out}, or put images into {images}/Train/train/CLASS and {images}/Train/val/CLASS"
    (empty := tmp_path / "empty").mkdir()
    assert advice(empty) == f"put images into {empty}/train/CLASS and {empty}/val/CLASS, or pass another --data-dir"


def test_other_files_are_counted(images: Path) -> None:
    Image.new("RGB", (9, 9)).save(images / "train" / "cat" / "9.jfif", format="JPEG")
    Image.new("RGB", (9, 9)).save(images / "train" / "cat" / "9.GIF")
    (images / "train" / "cat" / "more").mkdir()
    for name in ("cat/1.HEIC", "cat/more/2.heic", "dog/notes", "loose.png", "dog/Thumbs.db", "dog/.DS_Store", "notes.txt"):
        (images / "train" / name).write_bytes(b"")
    (images / "val" / "dog" / "1.svg").write_bytes(b"")
    lines: list[str] = []
    config = TrainConfig(**folder_settings(images))
    assert load_data(config, CPU, lines.append).num_train == 14
    assert lines == [f"{images}: 5 files passed over: 2 .heic, 1 .svg, 1 outside of a class folder, 1 without an ending"]
    for path in (images / "train" / "dog").rglob("*.png"):
        path.rename(path.with_suffix(".avif"))
    assert error(**folder_settings(images)).startswith(
        f"{images}/train/dog has no images, only files that are not read as images (6 .avif, 1 without an ending): add some (.jpg, "
    )


def test_links_that_lead_back_are_not_followed(images: Path) -> None:
    """They gave each image dozens of times, and those of other classes as well."""
    (images / "train" / "cat" / "self").symlink_to(".")
    (images / "train" / "cat" / "up").symlink_to("..")
    (images / "val" / "cat" / "deep").mkdir()
    (images / "val" / "cat" / "deep" / "round").symlink_to("../../elsewhere")
    (images / "val" / "dog").rename(images / "val" / "elsewhere")  # a link to another folder is followed
    (images / "val" / "elsewhere" / "back").symlink_to("../cat")
    (images / "train" / "elsewhere").mkdir()
    Image.new("RGB", (9, 9)).save(images / "train" / "elsewhere" / "0.png")
    source = load(**folder_settings(images))
    assert (source.train_counts, source.val_counts) == ((6, 6, 1), (6, 0, 6))


def test_a_folder_that_cannot_be_listed_is_refused(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "train" / "cat" / "locked").mkdir()
    scandir = os.scandir

    def locked(path: str) -> Any:
        if str(path).endswith(("locked", "train/val")):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert error(**folder_settings(images)).startswith(f"{images}/train/cat/locked cannot be read (")
    (images / "val").rename(images / "train" / "val")
    assert error(**folder_settings(images / "train", val_split=0.2)).startswith(f"{images}/train/val cannot be read (")


def test_folder_without_val_or_classes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert f"{tmp_path} has no folder val" in error(**folder_settings(tmp_path))
    (tmp_path / "val").mkdir()
    assert error(**folder_settings(tmp_path)).startswith(f"{tmp_path}/train has no class folders: put the images of each class")
    (tmp_path / "train" / "cat").mkdir()
    assert error(**folder_settings(tmp_path)).startswith(f"{tmp_path}/val has no class folders")
    (tmp_path / "val" / "cat").mkdir()
    assert error(**folder_settings(tmp_path)) == f"{tmp_path}/train has only the class cat: training needs two classes or more"


@FORKS
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("path", ["train/dog/3.png", "val/cat/2.png"])
def test_an_unreadable_image_is_named(workers: int, path: str, images: Path) -> None:
    whole = (images / path).read_bytes()
    (images / path).write_bytes(whole[: len(whole) // 2])
    message = error(**folder_settings(images, workers=workers))
    assert message.startswith(f"{images / path} cannot be read as an image (")
    assert message.endswith("): replace or remove it; prunetrain train --cache FOLDER finds such files before it trains")
