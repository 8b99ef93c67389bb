"""One process at a time: a lock that the kernel releases however its holder ends.

It is a POSIX record lock: unlike `flock`, the processes that decode images, forked from the holder, do not hold it on after the
holder was killed; and it works across machines where the file system (NFS, Lustre) has locks. Where it has none, everyone gets it.
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
    """Hold a lock inside. Its file is there as long as it is held, and names the holder.

    Args:
        path: the file; nobody else may open it, since closing it anywhere in this process releases the lock.
        what: what is locked, for the error's message.

    Raises:
        BusyError: if another process holds it.
        OutputError: if the file cannot be made.
    """
    try:
        ensure_folder(path.parent)
        descriptor = _acquire(path)
    except OSError as error:
        raise output_error(path, error) from error
    if descriptor is None:
        raise BusyError(f"{what} is in use by {_holder(path)}: wait for its end, or stop it first")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release, so that nobody locks a file that is about to go
        os.close(descriptor)


def _acquire(path: Path) -> int | None:
    """An open, locked file; None if another process has locked it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError:
            return descriptor  # this file system has no locks
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            with suppress(OSError):  # a full disk
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)  # its holder removed it meanwhile


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
