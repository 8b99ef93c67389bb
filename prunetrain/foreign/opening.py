"""Opening files: only regular ones (a pipe or a device may never end), and only so much of them."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from prunetrain.foreign.refusal import RefusedFileError


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Links are followed; what counts is what was opened, whatever the name means a moment later.

    Raises:
        OSError: if it cannot be opened.
        RefusedFileError: if it is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))  # a pipe would wait for a writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedFileError("it is no regular file")
    return os.fdopen(descriptor, "rb")


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_text(path: Path, most: int) -> str:
    """The text of a file in UTF-8, line ends as they come.

    Args:
        path: the file.
        most: the bytes that it may have.

    Raises:
        OSError: if it cannot be opened or read.
        UnicodeDecodeError: if it is not UTF-8.
        RefusedFileError: if it is no regular file, or too long.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise RefusedFileError(f"it is longer than {most:,} bytes")
    return content.decode("utf-8")
