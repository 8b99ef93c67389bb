"""Decoding an image file, and cutting the window of it that a network sees.

In: a path. Out: an RGB image, or the reason why there is none. Random cropping comes afterwards, in `random_resized_crop`.

Images are turned upright according to their EXIF. Grey levels of 16 bits become 8 bits, with 65535 as 255. Floating-point pixels are
refused, because no file says which of their levels is white.

A JPEG with far more pixels than wanted is decoded at a half, a quarter or an eighth of its size, which is several times faster: libjpeg
skips the high frequencies that resizing would average away. The shorter side stays at least twice as long as wanted, so images below four
times the wanted size are decoded in full.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from prunetrain.errors import DataError, abbreviate_names
from prunetrain.foreign.refusal import one_line
from prunetrain.training.data.orientation import Box, read_turn

_MARGIN = 2  # least length of the shorter side after decoding, as a multiple of the wanted one
_MOST_PIXELS = 1 << 28  # of an image after resizing: half as many again as Pillow accepts in a file
_SHOWN = 10  # unreadable files that a message names


@dataclass(frozen=True)
class Unreadable:
    """Why an image could not be read. Returned, not raised: an exception from a worker would arrive with its traceback as message."""

    path: str
    reason: str  # one line

    def error(self, advice: str = "") -> DataError:
        """The error for the parent process to raise; `advice` is appended to it."""
        return DataError(f"{self.path} cannot be read as an image ({self.reason}): replace or remove it{advice}")


def error_for_unreadable(images: Sequence[Unreadable]) -> DataError:
    """The error for the parent process to raise for one or more images; it names the first ten."""
    if len(images) == 1:
        return images[0].error()
    paths = abbreviate_names([image.path for image in images], _SHOWN)
    return DataError(f"{len(images):,} files cannot be read as images; replace or remove them: {paths}")


@dataclass(frozen=True)
class Decoding:
    """How files become images.

    Attributes:
        side: of the square that a network sees, in pixels.
        resized_side: of the image's shorter side before the centre is cut; None leaves the image whole, for a random window.
    """

    side: int
    resized_side: int | None

    def decode(self, path: str) -> Image.Image | Unreadable:
        """Decode the image in a file."""
        try:
            with _quiet(), Image.open(path) as file:
                extent = self._reduce(file)
                image = _rgb(file)
                turn = read_turn(file)
        except Exception as error:  # Pillow's decoders raise anything on damaged files
            return _unreadable(path, error)
        box = (0.0, 0.0, *extent)
        if turn is not None:
            box = turn.box(image.size, extent)
            image = image.transpose(turn.method)
        if self.resized_side is None:
            return image
        if math.prod(_resized(box, self.resized_side)) > _MOST_PIXELS:
            shape = f"{image.width} x {image.height} pixels"
            return Unreadable(path, f"{shape} are too long and narrow to resize the shorter side to {self.resized_side}")
        return centre_crop(image, self.side, self.resized_side, box)

    def size(self, path: str) -> tuple[int, int] | Unreadable:
        """Width and height of the result of `decode` before it is turned upright, from the file's header alone."""
        if self.resized_side is not None:
            return self.side, self.side
        try:
            with _quiet(), Image.open(path) as file:
                self._reduce(file)
                return file.size
        except Exception as error:
            return _unreadable(path, error)

    def _reduce(self, file: Image.Image) -> tuple[float, float]:
        """Ask the decoder for fewer pixels, which only JPEG's can give; return the width and height, with fractions of the last pixel."""
        wanted = _MARGIN * (self.resized_side or self.side)
        reduced = file.draft(None, (wanted, wanted))
        return file.size if reduced is None else reduced[1][2:]


def _quiet() -> "warnings.catch_warnings[None]":
    """Ignore Pillow's warnings, which name no file: of large images, damaged EXIF, palettes with transparency."""
    return warnings.catch_warnings(action="ignore")


def _rgb(file: Image.Image) -> Image.Image:
    """The pixels of an open file as RGB with 8 bits.

    Raises:
        ValueError: if it is unknown which of its levels is white.
    """
    if file.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if file.mode == "I" or file.mode.startswith("I;16"):
        return _from_16_bits(np.asarray(file)).convert("RGB")
    return file.convert("RGB")


def _from_16_bits(levels: npt.NDArray[Any]) -> Image.Image:
    """A grey image rounded to 256 levels; Pillow's own conversion turns everything above 255 white."""
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its grey levels range from {low} to {high}, outside the 16-bit range of 0 to 65535; save it with 8 or 16 bits")
    return Image.fromarray(((levels.astype(np.int32) + 128) // 257).astype(np.uint8))


def _unreadable(path: str, error: Exception) -> Unreadable:
    return Unreadable(path, one_line(error))


class ImageFiles:
    """Images by number, each decoded on access."""

    def __init__(self, paths: Sequence[str], decoding: Decoding) -> None:
        """Store the paths; no file is opened."""
        self.paths = paths
        self.decoding = decoding

    def __getitem__(self, number: int) -> Image.Image | Unreadable:
        """One image."""
        return self.decoding.decode(self.paths[number])


def centre_crop(image: Image.Image, side: int, resized_side: int, box: Box | None = None) -> Image.Image:
    """Resize the shorter side to `resized_side`, then cut the central `side` x `side`, pixel for pixel as torchvision does.

    Args:
        image: RGB.
        side: of the result.
        resized_side: at least `side`.
        box: the valid part of the image, if its outer column and row were rounded up from a fraction of a pixel.
    """
    box = box or (0.0, 0.0, *image.size)
    if min(box[2] - box[0], box[3] - box[1]) != resized_side:
        image = image.resize(_resized(box, resized_side), Image.Resampling.BILINEAR, box=box)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _resized(box: Box, resized_side: int) -> tuple[int, int]:
    """Width and height after resizing the shorter side, rounded down as by torchvision."""
    wide, high = box[2] - box[0], box[3] - box[1]
    return int(resized_side * wide // min(wide, high)), int(resized_side * high // min(wide, high))


def random_resized_crop(image: Image.Image, side: int, random: np.random.Generator) -> Image.Image:
    """A random part of the image, resized to `side` x `side` and mirrored half of the time, as torchvision's RandomResizedCrop and flip."""
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
