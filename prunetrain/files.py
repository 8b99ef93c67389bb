"""Writing files so that a reader never sees half of one: temporary file beside the target, flush, fsync, rename.

When a function here returns, what it wrote is on disk, folder entries included, so it also survives a crash of the machine.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from prunetrain.errors import ConfigError, OutputError, system_reason

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def resolve_links(path: Path) -> Path:
    """The absolute path with links followed; for circular links, one of them, so that the error comes from whatever opens it."""
    return Path(os.path.realpath(path))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file, which appears under its name only when it is complete and on disk.

    Raises:
        OutputError: if the folder or the file cannot be written; an existing file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        ensure_folder(path.parent)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise output_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write text as `write_atomically` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes as `write_atomically` does."""
    write_atomically(path, lambda file: file.write(content))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file as `write_atomically` writes one."""
    with source.open("rb") as content:
        write_atomically(target, lambda file: shutil.copyfileobj(content, file))


def check_overwrite(*paths: Path, force: bool) -> None:
    """Check that no file would be overwritten, unless that is forced.

    Raises:
        ConfigError: for the first file that exists, without `force`.
    """
    for path in paths:
        if path.exists() and not force:
            raise ConfigError(f"{path} already exists: choose another name, or pass --force")


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and sync it to disk.

    Raises:
        OutputError: if the file cannot be written; no part of the line is left in it.
    """
    try:
        ensure_folder(path.parent)
        new = not path.exists()
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                _write_whole(file, line.encode() + b"\n")
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    file.truncate(size)
                raise
        if new:
            _sync_folder(path.parent)
    except OSError as error:
        raise output_error(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder, and its parents where they are missing.

    Raises:
        FileExistsError: if it exists.
        OSError: if it cannot be made.
    """
    ensure_folder(path.parent)
    path.mkdir()
    try:
        _sync_folder(path.parent)
    except OSError:
        path.rmdir()
        raise


def ensure_folder(path: Path) -> None:
    """Make a folder and its parents where they are missing.

    Raises:
        OSError: if it cannot be made.
    """
    if path.is_dir():
        return
    try:
        make_folder(path)
    except FileExistsError:
        if not path.is_dir():  # another process may have been faster
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a process that was killed while writing into a folder."""
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _write_whole(file: FileIO, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]


def output_error(path: Path, error: BaseException) -> OutputError:
    """The error to show the user; torch.save hides the system's reason behind a RuntimeError of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    if cause is None:
        raise error
    return OutputError(f"cannot write {path}: {system_reason(cause)}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
