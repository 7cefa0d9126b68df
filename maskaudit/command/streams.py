"""Where our own words go. In supervised work standard output and standard error belong to foreign code, not to us."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

_ours: dict[str, TextIO] = {}
_lost: set[int] = set()


def out() -> TextIO:
    """For results."""
    return _ours.get("out", sys.stdout)


def err() -> TextIO:
    """For messages and progress."""
    return _ours.get("err", sys.stderr)


def redirect(*, to_out: TextIO, to_err: TextIO) -> None:
    """From now on our words go there."""
    _ours.update(out=to_out, err=to_err)


def give_up(stream: TextIO) -> None:
    """Nobody can be reached on a stream any more: what is still written to it goes nowhere."""
    _lost.add(id(stream))
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def results_lost() -> bool:
    """Whether results could not be written to standard output: its reader has gone, or its disk is full."""
    return id(out()) in _lost
