"""Open files: only regular ones (a pipe or a device may never end), and only up to a given size."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from prunetrain.foreign.refusal import RefusedFileError


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Links are followed; the opened file itself is checked, in case the name changes its meaning meanwhile.

    Raises:
        OSError: if it cannot be opened, or is a folder.
        RefusedFileError: if it is a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))  # a pipe would wait for a writer
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise RefusedFileError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def file_size(file: BinaryIO) -> int:
    """Return the bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_text(path: Path, most: int) -> str:
    """Read a whole file like `read_bytes`, as UTF-8 text with its line ends unchanged.

    Raises:
        UnicodeDecodeError: if it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_bytes(path: Path, most: int) -> bytes:
    """Read a whole file.

    Args:
        path: the file.
        most: largest number of bytes allowed.

    Raises:
        OSError: if it cannot be opened or read.
        RefusedFileError: if it is not a regular file, or too long.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise RefusedFileError(f"it is longer than {most:,} bytes")
    return content
