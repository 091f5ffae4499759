"""What the system's allocator does with the memory of freed tensors."""

from __future__ import annotations

import ctypes

LARGEST = 2**31 - 1  # of a C int
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of glibc's mallopt (malloc.h)


def keep_freed_memory() -> bool:
    """Keeps what freed tensors held for the next ones, for the rest of the process; whether that could be set.

    glibc maps every block above 32 MiB from the system and gives it back when it is freed, so that each large feature
    map costs a page fault for every 4 KiB: most of an element-wise operation's time (`benchmarks/kept_memory.py`).
    The process then holds on to the most that it used. Other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; on Windows there is no library without a name
        return False
    # Older versions refuse so high a threshold; without any mapping there is none to exceed
    kept = mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_MAX, 0)
    return bool(kept and mallopt(TRIM_THRESHOLD, LARGEST))
