"""How much memory a file may take, and what the C library does with memory that torch gives back."""

from __future__ import annotations

import ctypes
import os
import sys

#: Share of the machine's memory that one file may take: its bytes and what is made of them are held at once.
FILE_SHARE = 1 / 4
#: The same in bytes where the system does not say how much it has.
USUAL_FILE = 4 * 2**30

#: Parameters of glibc's `mallopt` (malloc.h), and the largest value that it takes.
_TRIM_THRESHOLD, _MMAP_MAX, _LARGEST = -1, -4, 2**31 - 1


def largest_file() -> int:
    """Most bytes that a file, or what is unpacked from it, may take."""
    try:
        return int(FILE_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return USUAL_FILE


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
