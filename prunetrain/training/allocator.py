"""The C library's allocator on a CPU, where it is glibc's: activations come and go in every step, and are to come out of the same memory.

Left alone, glibc gives large blocks back to the system at once, and the system clears each page anew when it is touched. torch allocates
all tensors on a CPU so. GPUs have torch's own caching allocator.
"""

import ctypes
import sys
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST_INT = 2**31 - 1
_LARGEST_BLOCK = 2**30


def keep_freed_memory() -> None:
    """From now on, keep what is freed for what is allocated next. For all of this process; nothing happens where it is not glibc's."""
    if libc := _glibc():
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST_INT)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)


def give_back_freed_memory() -> None:
    """Give back to the system what is free now: a smaller network needs less."""
    if libc := _glibc():
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library; None where it is another one."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "gnu_get_libc_version") else None
