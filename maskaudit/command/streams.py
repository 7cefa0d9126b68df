"""Where our own words go. In supervised work standard output and standard error belong to foreign code, not to us."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import IO, BinaryIO, TextIO

_ours: dict[str, TextIO] = {}
_lost: dict[int, OSError | None] = {}


def out() -> TextIO:
    """The stream for results."""
    return _ours.get("out", sys.stdout)


def err() -> TextIO:
    """The stream for messages and progress."""
    return _ours.get("err", sys.stderr)


def redirect(*, to_out: TextIO, to_err: TextIO) -> None:
    """From now on, results and messages go to these streams."""
    _ours.update(out=to_out, err=to_err)


class Lasting(io.TextIOBase):
    """A standard stream that costs no result: what its reader or its disk no longer takes goes nowhere."""

    def __init__(self, real: TextIO) -> None:
        self._real = real

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the real stream."""
        return self._real.encoding

    @property
    def buffer(self) -> BinaryIO:
        """Binary buffer of the real stream."""
        return self._real.buffer

    def fileno(self) -> int:
        """File descriptor of the real stream."""
        return self._real.fileno()

    def isatty(self) -> bool:
        """Whether the real stream is a terminal."""
        return self._real.isatty()

    def writable(self) -> bool:
        """True: what the real stream no longer takes is dropped."""
        return True

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            return self._real.write(text)
        except OSError as error:
            give_up(self, error)
            return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        try:
            self._real.flush()
        except OSError as error:
            give_up(self, error)


def make_lasting() -> None:
    """Let standard output and standard error outlive their readers; what was closed at the start leads nowhere.

    No pipe or file of ours may take the place of a descriptor that was closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        closed = getattr(sys, name) is None
        real = open(descriptor, "w", encoding="utf-8", closefd=False) if closed else getattr(sys, name)  # noqa: SIM115
        setattr(sys, name, Lasting(real))
        if closed:
            give_up(getattr(sys, name))


def give_up(stream: IO[str] | Lasting, error: OSError | None = None) -> None:
    """No one can be reached on a stream any more: what is still written to it goes nowhere."""
    _lost.setdefault(id(stream), error)
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def results_lost() -> bool:
    """Whether results could not be written to standard output: its reader has gone, or its disk is full."""
    return id(out()) in _lost


def why_lost() -> str:
    """Why, as a sentence; empty where nothing was lost, or where no one wants to read any more."""
    error = _lost.get(id(out()))
    if error is None or isinstance(error, BrokenPipeError):
        return ""
    return f"Standard output cannot be written: {error.strerror or type(error).__name__}."
