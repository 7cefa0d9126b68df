"""Calls of code that is not ours: marked while they last, refused once the user wants to stop.

A supervisor (`maskaudit.command.supervise`) reads the marks in memory that it shares with the process and its
workers, so that it notices a call that never returns, also one that hangs in native code. There it also says when what
foreign code prints is no longer read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import time
from collections.abc import Hashable, Iterable, Iterator
from types import FrameType

#: Entry points through which other packages add probes, attacks and repairs.
PLUGIN_GROUPS = ("maskaudit.probes", "maskaudit.attacks", "maskaudit.repairs")
#: Those that add readers of names of models; the name of the entry point is the prefix.
READER_GROUP = "maskaudit.formats"
#: One mark: process id, and the number of the call; odd while it lasts.
_MARK = struct.Struct("<qq")
#: Marks on the board; a process uses the one at its id modulo this.
_SLOTS = 1024
#: Seconds that a call may last where no number is given, and how many times the longest one before it.
USUAL_LIMIT, TIMES_LONGEST = 300.0, 20.0
#: Longest step between two looks that counts: past it this process was suspended, and the calls with it.
LONGEST_STEP = 5.0


class Interrupted(KeyboardInterrupt):
    """The user or the system asked this process to stop (`signum`); no handler for errors of a model catches it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"Interrupted by {signal.Signals(signum).name}.")
        self.signum = signum


class Board:
    """Marks of the calls in progress, one per process, in memory shared with all forked children."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOTS * _MARK.size + 1)

    def write(self, process: int, number: int) -> None:
        """Note that a process is at this call."""
        _MARK.pack_into(self._memory, process % _SLOTS * _MARK.size, process, number)

    def lasting(self) -> dict[int, int]:
        """Number of the call in progress, by process id."""
        return {process: number for process, number in _MARK.iter_unpack(self._memory[:-1]) if number % 2}

    @property
    def mute(self) -> bool:
        """Whether nobody reads any more what foreign code prints; told once, it stays so."""
        return self._memory[-1] != 0

    def ask_silence(self) -> None:
        """Let whatever foreign code prints from its next call on lead nowhere."""
        self._memory[-1] = 1


def longest_call(asked: float | None, seen: float) -> float:
    """Seconds that a call may last: as asked (0: any time), or by the longest that was seen."""
    return asked if asked is not None else max(USUAL_LIMIT, TIMES_LONGEST * seen)


class Stopwatch:
    """Times what is seen at one look after the other; time in which this process was suspended does not count."""

    def __init__(self) -> None:
        self._looked, self._lasted = time.monotonic(), dict[Hashable, float]()

    def seen(self, things: Iterable[Hashable]) -> dict[Hashable, float]:
        """What there is now, and for how many seconds it has been there without a gap."""
        now = time.monotonic()
        step, self._looked = min(now - self._looked, LONGEST_STEP), now
        self._lasted = {thing: self._lasted.get(thing, -step) + step for thing in things}
        return self._lasted


class _Process:
    """What this process knows of itself as a supervised one."""

    def __init__(self) -> None:
        self.board: Board | None = None
        self.pid = self.parent = self.number = self.depth = 0
        self.handles_signals = self.deferred = self.silent = False
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
        if _here.board.mute and not _here.silent:
            _here.silent = True
            fall_silent()
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


def fall_silent() -> None:
    """Let standard output and standard error lead nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def stopped(child: int) -> bool:
    """Whether a signal has stopped a child of this process, and nothing has let it go on."""
    with contextlib.suppress(OSError):  # ended, and buried
        return os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


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


@contextlib.contextmanager
def marked_calls(board: Board) -> Iterator[None]:
    """Within, calls are marked on a board."""
    before = _here.board
    mark_calls(board)
    try:
        yield
    finally:
        _here.board = before


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
