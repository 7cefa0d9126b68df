"""Where our own words go. In supervised work standard output and standard error belong to foreign code, not to us."""

from __future__ import annotations

import sys
from typing import TextIO

_ours: dict[str, TextIO] = {}


def out() -> TextIO:
    """For results."""
    return _ours.get("out", sys.stdout)


def err() -> TextIO:
    """For messages and progress."""
    return _ours.get("err", sys.stderr)


def redirect(*, to_out: TextIO, to_err: TextIO) -> None:
    """From now on our words go there."""
    _ours.update(out=to_out, err=to_err)
