"""Opening files: only regular ones (a pipe or a device may never end), and only so much of them."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from prunetrain.foreign.refusal import RefusedFileError


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Links are followed; what counts is what was opened, whatever the name means a moment later.

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
        raise RefusedFileError("it is no regular file")
    return os.fdopen(descriptor, "rb")


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_text(path: Path, most: int) -> str:
    """`read_bytes` as text in UTF-8, line ends as they come.

    Raises:
        UnicodeDecodeError: if it is none.
    """
    return read_bytes(path, most).decode("utf-8")


def read_bytes(path: Path, most: int) -> bytes:
    """A whole file.

    Args:
        path: the file.
        most: the bytes that it may have.

    Raises:
        OSError: if it cannot be opened or read.
        RefusedFileError: if it is no regular file, or too long.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise RefusedFileError(f"it is longer than {most:,} bytes")
    return content
