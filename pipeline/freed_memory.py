"""Asks the C library to keep freed memory instead of returning it to the system at once.

Pictures and the temporaries of small steps are above glibc's limit, from which on every block is mapped and unmapped by
itself: faulting its pages in again costs a third of a small step on CPUs, and as much of decoding in loading processes.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h


def keep_freed_memory() -> None:
    """From now on, in this process and those forked from it; does nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
