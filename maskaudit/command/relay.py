"""What foreign code prints, line by line to standard error, without what could steer a terminal."""

from __future__ import annotations

import codecs
import re
from typing import TextIO

from maskaudit.terminal import printable, say

#: Longest part of a line that is kept before it is passed on.
LONGEST = 1 << 16
_ENDS = re.compile(r"\r?\n|\r")


class Relay:
    """Passes on the words of foreign code and our own, one after the other.

    Args:
        stream: standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._pending = stream, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> None:
        """Take what foreign code wrote; lines that it would have written over are left out."""
        self._pending += self._decoder.decode(data)
        *lines, self._pending = self._pending.replace("\r\n", "\n").split("\n")
        self._pending = self._pending[-LONGEST:] if "\r" in self._pending else self._pending
        if len(self._pending) > LONGEST:
            lines.append(self._pending)
            self._pending = ""
        for line in lines:
            self._line(line)

    def ours(self, text: str) -> None:
        """Pass on our own words as they are."""
        say(text, self._stream)

    def close(self) -> None:
        """Pass on an unfinished last line."""
        if self._pending:
            self._line(self._pending)
            self._pending = ""

    def _line(self, line: str) -> None:
        shown = line.rstrip("\r").rpartition("\r")[2]
        if shown.strip():
            say(printable(shown.replace("\t", "    ")) + "\n", self._stream)
