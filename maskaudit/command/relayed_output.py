"""What foreign code prints, line by line to standard error, without what could steer a terminal."""

from __future__ import annotations

import codecs
from typing import TextIO

from maskaudit.command.terminal import say
from maskaudit.errors import without_controls

#: Longest part of a line that is kept before it is passed on.
LONGEST = 1 << 16
#: Bytes of foreign words that are passed on: some ten thousand lines, which nobody reads to the end.
MOST = 1 << 20
#: What clears the line on a terminal.
_CLEAR = "\r\x1b[K"


class OutputRelay:
    """Passes on the words of foreign code and our own, one after the other.

    Args:
        stream: standard error.

    Attributes:
        full: whether it has passed on all that it passes on of foreign words.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._pending = stream, ""
        self._left, self.full = MOST, False
        self._status_shown = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> None:
        """Take what foreign code wrote; lines that it would have written over, and what is too much, are left out."""
        if self.full:
            return
        data, self._left = data[: self._left], max(0, self._left - len(data))
        self._pending += self._decoder.decode(data)
        *lines, self._pending = self._pending.replace("\r\n", "\n").split("\n")
        self._pending = self._pending[-LONGEST:] if "\r" in self._pending else self._pending
        if len(self._pending) > LONGEST:
            lines.append(self._pending)
            self._pending = ""
        for line in lines:
            self._line(line)
        if not self._left:
            self.close()
            self.full = True
            self.ours("maskaudit: the model, or a library that it uses, prints a lot; what follows is not shown.\n")

    def ours(self, text: str) -> None:
        """Pass on our own words as they are; a last line without end is a status that may be written over."""
        if text.endswith("\n"):
            self._clear()
        say(text, self._stream)
        self._status_shown = not text.endswith(("\n", _CLEAR))

    def close(self) -> None:
        """Pass on an unfinished last line, and clear a status."""
        if self._pending:
            self._line(self._pending)
            self._pending = ""
        self._clear()

    def _line(self, line: str) -> None:
        shown = line.rstrip("\r").rpartition("\r")[2]
        if shown.strip():
            self._clear()
            say(without_controls(shown.replace("\t", "    ")) + "\n", self._stream)

    def _clear(self) -> None:
        if self._status_shown:
            say(_CLEAR, self._stream)
            self._status_shown = False
