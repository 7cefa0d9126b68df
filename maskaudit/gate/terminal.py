"""Writing to standard output whatever its encoding: a Windows code page must not end a gate."""

from __future__ import annotations

from typing import TextIO


def say(text: str, stream: TextIO) -> None:
    """Write to a terminal, a pipe or a file of any encoding: what it cannot show becomes a question mark."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
