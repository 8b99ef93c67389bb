"""Image files as pixels: upright whatever way the camera was held, and with all the levels that they have."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torchvision
from datafiles import error, folder_settings, levels, write_images
from PIL import Image, ImageOps

from prunetrain.training.data import image_cache
from prunetrain.training.data.decoding import Decoding, ImageFiles, Unreadable
from prunetrain.training.data.orientation import _TURNS

ORIENTATION = 274
ORIENTATIONS = range(1, 9)


def photo(width: int, height: int) -> Image.Image:
    """Smooth, and different in each corner."""
    coarse = levels(np.random.default_rng(3), height // 20 + 2, width // 20 + 2, 3)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def held(image: Image.Image, path: Path, orientation: int, **options: Any) -> Path:
    """Write an image as a camera does that was held so."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif, **options)
    return path


def pixels(found: object) -> npt.NDArray[np.int64]:
    assert isinstance(found, Image.Image), found
    assert found.mode == "RGB"
    return np.array(found).astype(np.int64)


# Orientation


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_images_are_upright(ending: str, orientation: int, tmp_path: Path) -> None:
    path = held(photo(41, 30), tmp_path / f"a.{ending}", orientation, **{"lossless": True} if ending == "webp" else {})
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
    assert upright.size == ((30, 41) if orientation >= 5 else (41, 30))
    np.testing.assert_array_equal(pixels(Decoding(8, None).decode(str(path))), pixels(upright))
    transform = torchvision.transforms.Compose([torchvision.transforms.Resize(13), torchvision.transforms.CenterCrop(8)])
    np.testing.assert_array_equal(pixels(Decoding(8, 13).decode(str(path))), pixels(transform(upright)))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_reduced_jpegs_are_upright(orientation: int, tmp_path: Path) -> None:
    """401 x 641 is decoded at a quarter of it, in 101 x 161 pixels, the outer ones of which are parts."""
    path = held(photo(401, 641), tmp_path / "a.jpg", orientation, quality=95)
    whole = Decoding(401, None).decode(str(path))  # wants too many pixels to be reduced
    assert isinstance(whole, Image.Image)
    whole.save(tmp_path / "b.png")
    small, full = (pixels(Decoding(50, 50).decode(str(tmp_path / name))) for name in ("a.jpg", "b.png"))
    assert np.abs(small - full).mean() < 1  # levels of 255


@pytest.mark.parametrize("orientation", list(_TURNS))
def test_what_counts_turns_with_the_image(orientation: int) -> None:
    turn, image = _TURNS[orientation], Image.fromarray(levels(np.random.default_rng(0), 5, 7, 3))
    turned = image.transpose(turn.method)
    counts = turned.crop(turn.box(image.size, (6, 4)))  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.array(counts), np.array(image.crop((0, 0, 6, 4)).transpose(turn.method)))


@pytest.mark.parametrize("note", [b"", b"Exif\0\0", b"Exif\0\0nothing at all", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"])
def test_damaged_notes_are_none(note: bytes, tmp_path: Path) -> None:
    image = photo(20, 30)
    image.save(tmp_path / "a.png", exif=note)
    np.testing.assert_array_equal(pixels(Decoding(8, None).decode(str(tmp_path / "a.png"))), pixels(image))


def test_pillow_does_not_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors in tests. These would be lines of its source to a user."""
    path = tmp_path / "a.png"
    photo(9, 9).convert("P").save(path, transparency=bytes(range(256)))
    assert isinstance(Decoding(8, 8).decode(str(path)), Image.Image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)
    assert isinstance(Decoding(8, 8).decode(str(path)), Image.Image)
    assert Decoding(8, None).size(str(path)) == (9, 9)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert isinstance(Decoding(8, 8).decode(str(path)), Unreadable)


def test_an_image_that_resizing_would_blow_up_is_refused(tmp_path: Path) -> None:
    """30 kB of one pixel by 65,000 took 17 GB of memory."""
    path, wide = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("L", (1, 5000)).save(path)
    reason = "1 x 5000 pixels are too long and narrow to resize the shorter side to 256"
    assert Decoding(224, 256).decode(str(path)) == Unreadable(str(path), reason)
    assert isinstance(Decoding(224, None).decode(str(path)), Image.Image)
    Image.new("L", (5000, 40)).save(wide)
    assert isinstance(Decoding(224, 256).decode(str(wide)), Image.Image)


def test_what_was_cached_when_images_lay_on_their_side_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ImageFiles([str(held(photo(20, 30), tmp_path / "a.png", 6))], Decoding(8, None))
    for version in (1, image_cache._VERSION):
        monkeypatch.setattr(image_cache, "_VERSION", version)
        assert image_cache.load_or_cache(files, tmp_path / "cache", "train", workers=0, say=str)
    assert len(list((tmp_path / "cache").iterdir())) == 2


# Levels


def written(name: str, levels: npt.NDArray[Any], mode: str, folder: Path) -> Path:
    image = Image.fromarray(levels)
    assert image.mode == mode
    image.save(folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("name", "mode", "dtype"),
    [
        ("a.png", "I;16", "<u2"),
        ("a.tif", "I;16", "<u2"),
        ("big.tif", "I;16B", ">u2"),
        ("a.pgm", "I;16", "<u2"),
        ("long.tif", "I", "i4"),
    ],
)
def test_16_bits_become_8(name: str, mode: str, dtype: str, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (30, 41)).astype(dtype)
    deep[0, :4] = (0, 128, 129, 65535)
    path = written(name, deep, mode, tmp_path)
    found = pixels(Decoding(8, None).decode(str(path)))
    assert (found == found[..., :1]).all()
    np.testing.assert_array_equal(found[..., 0], np.round(deep.astype(float) / 257))
    assert found[0, :4, 0].tolist() == [0, 0, 1, 255]
    assert 120 < found.mean() < 135


@pytest.mark.parametrize(
    ("levels", "mode", "reason"),
    [
        (np.full((9, 9), 0.5, np.float32), "F", "its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits"),
        (
            np.full((9, 9), 70_000, np.int32),
            "I",
            "its grey levels range from 70000 to 70000, outside the 16-bit range of 0 to 65535; save it ",
        ),
        (
            np.full((9, 9), -1, np.int32),
            "I",
            "its grey levels range from -1 to -1, outside the 16-bit range of 0 to 65535; save it with 8 ",
        ),
    ],
    ids=["float", "large", "negative"],
)
def test_levels_that_could_mean_anything_are_refused(levels: npt.NDArray[Any], mode: str, reason: str, tmp_path: Path) -> None:
    path = written("a.tif", levels, mode, tmp_path)
    found = Decoding(8, 8).decode(str(path))
    assert isinstance(found, Unreadable)
    assert found.reason.startswith(reason)
    images = write_images(tmp_path / "images")
    path.rename(images / "val" / "dog" / "a.tif")
    line = error(**folder_settings(images))
    assert re.fullmatch(r"\S+/a\.tif cannot be read as an image \(its .*; save it with 8 or 16 bits\): replace or remove it; .*", line)
