"""Makes the system's allocator keep the memory of freed tensors, which saves time."""

from __future__ import annotations

import ctypes

LARGEST = 2**31 - 1  # the largest C int
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of glibc's mallopt (malloc.h)


def keep_freed_memory() -> bool:
    """Keeps the memory of freed tensors for later ones, for the rest of the process. Returns whether that worked.

    By default glibc maps every block above 32 MiB from the system and returns it when it is freed, so that each large
    feature map costs a page fault per 4 KiB: most of an element-wise operation's time (`benchmarks/kept_memory.py`).
    With this setting, the process keeps its peak memory. Other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; on Windows, None is no library
        return False
    # Older versions refuse such a high threshold; switching mapping off has the same effect.
    kept = mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_MAX, 0)
    return bool(kept and mallopt(TRIM_THRESHOLD, LARGEST))
