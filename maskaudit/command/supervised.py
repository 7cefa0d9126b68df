"""What the supervised child does: work, and report how it ended."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TextIO, cast

from maskaudit import foreign
from maskaudit.command import streams
from maskaudit.command.channel import Message, Sender, Stream
from maskaudit.errors import first_line

#: Signals that the supervisor passes on.
FORWARDED = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGTSTP") if hasattr(signal, name)
)

#: Work: sends what it finds, and raises for what ended it.
Work = Callable[[Sender], None]


def be_the_child(work: Work, sender: Sender, printing: int, board: foreign.Board) -> None:
    """Everything the child does; never returns."""
    try:
        os.setpgid(0, 0)
        for name in ("SIGCHLD", "SIGHUP", "SIGTSTP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        for name in ("SIGTTIN", "SIGTTOU"):  # a process in the background must not be stopped for asking the terminal
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        out, err = Stream(sender, "out", streams.out()), Stream(sender, "err", streams.err())
        streams.redirect(to_out=cast(TextIO, out), to_err=cast(TextIO, err))
        for descriptor in (1, 2):
            os.dup2(printing, descriptor)
        sys.stdout, sys.stderr = _printed(1), _printed(2)
        foreign.mark_calls(board)
        foreign.handle_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        work(sender)
        sender.send("end")
    except BaseException as error:  # whatever ends the work must be reported
        with contextlib.suppress(BaseException):
            sender.send("broke", **described(error))
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            ctypes.CDLL(None).fflush(None)  # what C code printed
            atexit._run_exitfuncs()
        os._exit(0)


def described(error: BaseException) -> Message:
    """An exception as data; `exit` tells a request to end the process from a fault."""
    return {
        "error": type(error).__name__,
        "text": first_line(error),
        "exit": not isinstance(error, Exception),
        "lacked": _lacked(error),
        "trace": "".join(traceback.format_exception(error)),
    }


def _lacked(error: BaseException) -> str:
    """What of the machine was used up, if that is what an exception says."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "files"
    return "memory" if isinstance(error, MemoryError) else ""


def _printed(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", buffering=1, errors="backslashreplace", closefd=False)
