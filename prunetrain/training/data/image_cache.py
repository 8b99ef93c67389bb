"""Cache of decoded images (`--cache DIR`): raw pixels in a file that all processes map into memory.

In: paths, and how to decode them. Out: the same images, bit for bit, without decoding. The system holds a mapped file in memory once for
all training and decoding processes of a machine, and frees the memory when it needs it. A later run finds the file again.

Everything that is not random is done before an image is stored: validation images and small ones (`folder.py`) are stored as the squares
that they become, others as decoded. The folder's name is a digest of the files' names, sizes and times, so changed files are decoded anew.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from prunetrain.errors import BusyError
from prunetrain.files import output_error
from prunetrain.foreign.memory import available_memory, format_bytes
from prunetrain.locking import locked
from prunetrain.training.data.base import Say
from prunetrain.training.data.decoding import Decoding, ImageFiles, Unreadable, error_for_unreadable
from prunetrain.training.data.workers import load_in_workers

_SIZES, _PIXELS = "sizes.npy", "pixels.bin"
_IMAGES_PER_TASK = 16  # images that a worker decodes before it hands them over
_VERSION = 2  # of the format and of the decoding
_MAX_MEMORY_SHARE = 0.75  # of the free memory that cached images may take
_POLL_SECONDS = 0.5  # seconds between looks while another process decodes the same images

_Part = tuple[Tensor, Tensor]  # sizes, int32 (n, 2), and pixels, uint8 (bytes,)


class DecodedImages:
    """Images by number, read from a mapped file.

    Attributes:
        sizes: width and height of each, int32 (N, 2).
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder that `load_or_cache` has written.

        Raises:
            OSError, ValueError: if it is incomplete.
        """
        self._folder = folder
        self.sizes: npt.NDArray[np.int32] = np.load(folder / _SIZES, allow_pickle=False)
        self._ends = 3 * np.cumsum(self.sizes.prod(axis=1, dtype=np.int64))
        self._pixels: npt.NDArray[np.uint8] | None = None
        if (folder / _PIXELS).stat().st_size != self._ends[-1]:
            raise ValueError("the number of pixels does not match the sizes")

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """All pixels one after the other, (bytes,); mapped on first use in a process."""
        if self._pixels is None:
            self._pixels = np.memmap(self._folder / _PIXELS, dtype=np.uint8, mode="r")
        return self._pixels

    def __getstate__(self) -> dict[str, Any]:
        """The state without the mapping, which would be pickled pixel by pixel for a process that is not forked."""
        return self.__dict__ | {"_pixels": None}

    def __getitem__(self, number: int) -> Image.Image:
        """One image."""
        width, height = self.sizes[number].tolist()
        end = int(self._ends[number])
        return Image.fromarray(np.asarray(self.pixels[end - 3 * width * height : end]).reshape(height, width, 3))

    def squares(self, numbers: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Some images of a set that all have the same size, (N, H, W, 3)."""
        width, height = self.sizes[0].tolist()
        return np.asarray(self.pixels).reshape(-1, height, width, 3)[numbers]


def load_or_cache(files: ImageFiles, cache: Path, split: str, *, workers: int, say: Say) -> DecodedImages | None:
    """Return the images of some files from the cache, decoding them into it first if needed.

    Args:
        files: the images, at least one.
        cache: folder of the cache.
        split: their name, "train" or "val".
        workers: processes that decode.
        say: called with a line on what was written, or why nothing was.

    Returns:
        None if they do not fit into free memory or on the disk.

    Raises:
        DataError: for images that cannot be read; the message names the first ten.
        OutputError: if the cache cannot be written.
    """
    folder = cache / f"{split}-{_digest(files)}"
    while (images := _open_cache(folder)) is None:
        try:
            with locked(folder.with_suffix(".lock"), str(folder)):
                if _open_cache(folder) is None and not _write_cache(files, folder, workers, say):
                    return None
        except BusyError:
            time.sleep(_POLL_SECONDS)
    return images if _fits_in_memory(int(images.pixels.nbytes), f"the {len(files.paths):,} {split} images in {cache}", say) else None


def _open_cache(folder: Path) -> DecodedImages | None:
    try:
        return DecodedImages(folder)
    except (OSError, ValueError, EOFError):
        return None


def _digest(files: ImageFiles) -> str:
    """A digest that changes with the files and the way they are decoded."""
    digest = hashlib.sha256(f"{_VERSION} {files.decoding}".encode())
    for path in files.paths:
        digest.update(f"\0{os.path.abspath(path)}".encode(errors="surrogateescape"))
        with suppress(OSError):  # a broken link, which decoding reports
            status = os.stat(path)
            digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:20]


def _fits_in_memory(size: int, what: str, say: Say) -> bool:
    if size <= (limit := int(_MAX_MEMORY_SHARE * available_memory())):
        return True
    say(f"not cached: {what} take {format_bytes(size)} or more decoded, and only {format_bytes(limit)} of memory may be used")
    return False


def _write_cache(files: ImageFiles, folder: Path, workers: int, say: Say) -> bool:
    """Decode everything into a folder, which appears only when complete; return False if there is no room."""
    what = f"the {len(files.paths):,} images of {folder}"
    total = 0
    for number, path in enumerate(files.paths):
        total += _decoded_bytes(files.decoding, path)
        if number % 1000 == 0 and not _fits_in_memory(total, what, say):  # with a million files, the first ones tell
            return False
    if not _fits_in_memory(total, what, say):
        return False
    if total > (free := shutil.disk_usage(folder.parent).free):
        say(f"not cached: {what} take {format_bytes(total)} decoded, and the disk has only {format_bytes(free)} free")
        return False
    partial = folder.with_suffix(".partial")  # may be left over from a process that was killed
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _decode_into(partial, files, workers)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"cached {what}: {format_bytes(total)} of pixels")
    return True


def _decoded_bytes(decoding: Decoding, path: str) -> int:
    """The bytes of an image's pixels; 0 if its header is unreadable, which decoding reports together with other damage."""
    size = decoding.size(path)
    return 0 if isinstance(size, Unreadable) else 3 * size[0] * size[1]


def _decode_into(folder: Path, files: ImageFiles, workers: int) -> None:
    """Let workers decode and this process write; all images are decoded even after a failure, so that one message names all failures."""
    sizes: list[Tensor] = []
    unreadable: list[Unreadable] = []
    with (folder / _PIXELS).open("wb") as file:
        for part in _decode_in_workers(files, workers):
            if isinstance(part, list):
                unreadable += part
            elif not unreadable:
                sizes.append(part[0])
                file.write(part[1].numpy().data)
        if unreadable:
            raise error_for_unreadable(unreadable)
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / _SIZES, torch.cat(sizes).numpy())


def _decode_in_workers(files: ImageFiles, workers: int) -> Iterator[_Part | list[Unreadable]]:
    """Yield all images in order, some at a time; where some of these are unreadable, yield those instead."""
    count = len(files.paths)
    spans = (range(first, min(first + _IMAGES_PER_TASK, count)) for first in range(0, count, _IMAGES_PER_TASK))
    yield from load_in_workers(_FilesDataset(files), spans, _join_images, workers=workers)


class _FilesDataset(Dataset[Image.Image | Unreadable]):
    def __init__(self, files: ImageFiles) -> None:
        self._files = files

    def __getitem__(self, number: int) -> Image.Image | Unreadable:
        return self._files[number]


def _join_images(images: list[Image.Image | Unreadable]) -> _Part | list[Unreadable]:
    """The sizes of some images and their pixels one after the other; or the unreadable ones, if there are any."""
    if unreadable := [image for image in images if isinstance(image, Unreadable)]:
        return unreadable
    pixels = [torch.from_numpy(np.array(image)) for image in images]
    sizes = torch.tensor([(image.shape[1], image.shape[0]) for image in pixels], dtype=torch.int32)
    return sizes, torch.cat([image.flatten() for image in pixels])
