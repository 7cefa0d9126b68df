"""Calls of code that is not ours: marked while they last, refused once the user wants to stop.

A supervisor (`maskaudit.command.supervise`) reads the marks in memory that it shares with the process and its
workers, so that it notices a call that never returns, also one that hangs in native code.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from types import FrameType

#: Entry points through which other packages add probes, attacks and repairs.
PLUGIN_GROUPS = ("maskaudit.probes", "maskaudit.attacks", "maskaudit.repairs")
#: One mark: process id, and the number of the call; odd while it lasts.
_MARK = struct.Struct("<qq")
#: Marks on the board; a process uses the one at its id modulo this.
_SLOTS = 1024


class Interrupted(KeyboardInterrupt):
    """The user or the system asked this process to stop (`signum`); no handler for errors of a model catches it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"Interrupted by {signal.Signals(signum).name}.")
        self.signum = signum


class Board:
    """Marks of the calls in progress, one per process, in memory shared with all forked children."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOTS * _MARK.size)

    def write(self, process: int, number: int) -> None:
        """Note that a process is at this call."""
        _MARK.pack_into(self._memory, process % _SLOTS * _MARK.size, process, number)

    def lasting(self) -> dict[int, int]:
        """Number of the call in progress, by process id."""
        return {process: number for process, number in _MARK.iter_unpack(self._memory[:]) if number % 2}


class _Process:
    """What this process knows of itself as a supervised one."""

    def __init__(self) -> None:
        self.board: Board | None = None
        self.pid = self.parent = self.number = self.depth = 0
        self.handles_signals = self.deferred = False
        self.stop: int | None = None


_here = _Process()


class Call:
    """Around one call of foreign code; raises `Interrupted` instead where the user wants to stop.

    A process whose parent is gone ends here: no one is left to take its results.
    """

    def __enter__(self) -> None:
        check()
        if _here.board is None:
            return
        pid = os.getpid()
        if pid != _here.pid:  # a worker: forked since
            _here.pid, _here.parent, _here.number, _here.depth = pid, os.getppid(), 0, 0
        if os.getppid() != _here.parent:
            os._exit(1)
        _here.depth += 1
        if _here.depth == 1:
            _here.number += 1
            _here.board.write(pid, _here.number)

    def __exit__(self, *exception: object) -> None:
        if _here.board is None or not _here.depth:
            return
        _here.depth -= 1
        if not _here.depth:
            _here.number += 1
            _here.board.write(_here.pid, _here.number)


def check() -> None:
    """A point where work may be broken off.

    Raises:
        Interrupted: when the user wants to stop.
    """
    if _here.stop is not None:
        raise Interrupted(_here.stop)


def raised_by_model(error: BaseException) -> bool:
    """Whether an exception out of a call is the failure of what was called, not a request of the user to stop."""
    if isinstance(error, KeyboardInterrupt):
        return _here.handles_signals and not isinstance(error, Interrupted)
    return True


def mark_calls(board: Board) -> None:
    """Mark the calls of this process, and of those that it forks, on a board."""
    _here.board = board
    _here.pid, _here.parent, _here.number, _here.depth = os.getpid(), os.getppid(), 0, 0


def handle_signals() -> None:
    """Let Ctrl-C and SIGTERM raise `Interrupted`, at the next point where work may be broken off; twice: end at once.

    Forked workers end on SIGTERM as processes do, and leave Ctrl-C to this one.
    """
    if not _here.handles_signals and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_as_worker)
    _here.handles_signals, _here.deferred, _here.stop = True, False, None
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _wants_to_stop)


@contextlib.contextmanager
def breaking_off_between_calls() -> Iterator[None]:
    """Within, a request to stop waits for the next foreign call: for work that keeps books."""
    before, _here.deferred = _here.deferred, True
    try:
        yield
    finally:
        _here.deferred = before


@contextlib.contextmanager
def breaking_off_at_once() -> Iterator[None]:
    """Within, a request to stop is answered at once: for work of which nothing is kept until it is finished."""
    check()
    before, _here.deferred = _here.deferred, False
    try:
        yield
    finally:
        _here.deferred = before


def _wants_to_stop(signum: int, frame: FrameType | None) -> None:
    if _here.stop is not None:
        os._exit(128 + signum)
    _here.stop = signum
    if not _here.deferred:
        raise Interrupted(signum)


def _as_worker() -> None:
    _here.stop = None
    if _here.handles_signals:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
