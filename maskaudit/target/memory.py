"""Memory of this process: how much it may take, and how much it took at most."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from maskaudit.errors import UsageError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: Bytes beyond what the process already takes that an audit needs at least.
LEAST_ROOM = 64 * 2**20


@contextlib.contextmanager
def limited(most: int | None) -> Iterator[None]:
    """Within, this process and the workers that it forks may take `most` bytes each; None: whatever there is.

    What counts is what they write to; files that are only read do not. More is refused to the code that asks for it, as
    where the machine has no more.

    Raises:
        UsageError: where the system knows no such limit, or the process takes nearly as much already.
    """
    if most is None:
        yield
        return
    taken = held()
    if resource is None or taken is None:
        raise UsageError("--memory needs a system that can limit the memory of a process (Linux); leave it out.")
    if most < taken + LEAST_ROOM:
        raise UsageError(
            f"--memory {most} leaves no room to work in: the program itself takes {taken >> 20} MiB; give at least "
            f"{(taken + LEAST_ROOM >> 20) + 1}MiB."
        )
    before = resource.getrlimit(resource.RLIMIT_DATA)
    least = min(bound for bound in (most, *before) if bound != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (least, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def peak() -> int | None:
    """Most bytes of memory that this process, or a worker of it that has ended, held at one time since it began."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit


def give_back(device: torch.device) -> None:
    """Free what is not used any more, after memory ran out."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def held() -> int | None:
    """Bytes that count for the limit now."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
    except (OSError, StopIteration, ValueError):
        return None
