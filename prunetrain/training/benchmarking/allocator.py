"""Setting the C library's allocator to what it is in a CPU run after the first epoch, for processes that only measure.

In: the process. Out: freed memory is kept for the next allocations. torch allocates CPU tensors with the C library. glibc returns large
blocks to the system when they are freed, and the system clears every page anew when it is next touched. In a run this mostly stops by
itself, once long-lived blocks lie behind those that are freed; in a process that only takes steps, these would be slower than in a run.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST_INT = 2**31 - 1
_LARGEST_BLOCK = 2**30  # bytes


def keep_freed_memory() -> None:
    """Keep freed memory for the rest of this process; has no effect if the allocator is not glibc's."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST_INT)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
