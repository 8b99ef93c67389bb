"""The C library's allocator as a run on a CPU has it after its first epoch, for processes that only measure.

In: the process. Out: what is freed is kept for what is allocated next. torch allocates tensors on a CPU with the C library, and glibc's
gives large blocks back to the system when they are freed, which clears every page anew when it is next touched. In a run that mostly stops
by itself, as long-lived blocks come to lie behind those that go; in a process of nothing but steps, they would be slower than in a run.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST_INT = 2**31 - 1
_LARGEST_BLOCK = 2**30  # bytes


def keep_freed_memory() -> None:
    """Keep what is freed, for the rest of this process; nothing happens where the allocator is not glibc's."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST_INT)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
