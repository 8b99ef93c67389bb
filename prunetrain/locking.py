"""A lock for one process at a time, which the kernel releases however its holder ends.

It is a POSIX record lock. Unlike with `flock`, the image-decoding processes forked from the holder do not keep holding it after the holder
was killed. It works across machines if the file system (NFS, Lustre) supports locks; if it does not, everyone gets the lock.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prunetrain.errors import BusyError
from prunetrain.files import ensure_folder, output_error


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock inside the context. Its file exists as long as it is held, and names the holder.

    Args:
        path: the lock file; nothing else in this process may open it, since closing it anywhere releases the lock.
        what: what is locked, for the error message.

    Raises:
        BusyError: if another process holds it.
        OutputError: if the lock file cannot be made.
    """
    try:
        ensure_folder(path.parent)
        descriptor = _acquire(path)
    except OSError as error:
        raise output_error(path, error) from error
    if descriptor is None:
        raise BusyError(f"{what} is in use by {_holder(path)}: wait for it to end, or stop it first")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release, so that nobody locks a file about to be removed
        os.close(descriptor)


def _acquire(path: Path) -> int | None:
    """The descriptor of the open, locked file; None if another process has locked it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError:
            return descriptor  # this file system does not support locks
        if _is_same_file(descriptor, path):
            os.ftruncate(descriptor, 0)
            with suppress(OSError):  # a full disk
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)  # its holder has removed it in the meantime


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
