"""Arrays in an .npz file: headers are read first, so that a caller can refuse an array before its numbers are read.

In: an open file. Out: `ArrayHeader`s, then the arrays. Nothing is unpickled.
"""

import io
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.lib import format as npy

from prunetrain.foreign.archives import ARCHIVE_ERRORS, open_archive
from prunetrain.foreign.refusal import RefusedFileError, one_line

_MAX_ENTRIES: Final = 10_000
_MAX_HEADER: Final = 2**16  # bytes; numpy itself reads as many as the header declares
_READERS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class ArrayHeader:
    """The shape and type of an array that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """The array's size in memory; exact, however large a size the file declares."""
        return prod(self.shape) * self.dtype.itemsize


class ArrayFile:
    """The arrays of an .npz file, including compressed ones by numpy.savez_compressed.

    Raises:
        RefusedFileError: if the file is not an .npz file, or damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._archive = open_archive(file, most_entries=_MAX_ENTRIES, compressed=True)

    def headers(self, names: Iterable[str]) -> dict[str, ArrayHeader]:
        """Read the headers of the arrays that exist among `names`.

        Raises:
            RefusedFileError: for an array that is damaged, holds objects, or declares another size than is stored.
        """
        present = set(self._archive.namelist())
        return {name: self._header(name) for name in names if f"{name}.npy" in present}

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Read an array whose header has been read.

        Raises:
            RefusedFileError: if its checksum is wrong, or there is not enough memory for it.
        """
        try:
            with _quiet(), self._archive.open(f"{name}.npy") as stream:
                array: np.ndarray[Any, Any] = npy.read_array(stream, allow_pickle=False)
                stream.read(1)  # the checksum is compared at the end
        except (*ARCHIVE_ERRORS, MemoryError) as error:
            raise RefusedFileError(f"{name}: {one_line(error)}") from None
        return array

    def _header(self, name: str) -> ArrayHeader:
        entry: zipfile.ZipInfo = self._archive.getinfo(f"{name}.npy")
        try:
            with self._archive.open(entry) as stream:
                start = io.BytesIO(stream.read(_MAX_HEADER))
            version = npy.read_magic(start)
            if version not in _READERS:
                raise RefusedFileError(f"{name}: arrays of version {version} are not supported")
            with _quiet():
                shape, _, dtype = _READERS[version](start)
        except RefusedFileError:
            raise
        except Exception as error:  # numpy parses the header as Python, which may raise anything
            raise RefusedFileError(f"{name}: {one_line(error)}") from None
        header = ArrayHeader(shape, dtype)
        if dtype.hasobject:
            raise RefusedFileError(f"{name} holds Python objects, which are not read")
        if min(shape, default=0) < 0:
            raise RefusedFileError(f"{name} declares the shape {shape}, and no size may be negative")
        if header.nbytes != entry.file_size - start.tell():
            raise RefusedFileError(f"{name} should take {header.nbytes:,} bytes, but {entry.file_size - start.tell():,} are stored")
        return header


def _quiet() -> "warnings.catch_warnings[None]":
    """Suppress numpy's warnings about headers written by Python 2."""
    return warnings.catch_warnings(action="ignore")
