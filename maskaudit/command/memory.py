"""What the C library does with memory that torch gives back."""

from __future__ import annotations

import ctypes
import sys

#: Parameters of glibc's `mallopt` (malloc.h), and the largest value that it takes.
_TRIM_THRESHOLD, _MMAP_MAX, _LARGEST = -1, -4, 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for its next tensors; whether that could be arranged.

    glibc hands large blocks back to the system at once, which fills the next ones with zeros page by page: with batches
    of images that costs as much as a pass of a small network. For programs that are done with memory when they end;
    with another C library nothing changes. Results do not depend on it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _LARGEST)) and bool(mallopt(_MMAP_MAX, 0))
