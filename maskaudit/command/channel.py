"""The private pipe by which supervised work tells its supervisor what it found, and that it is finished.

A message is a secret that both ends know, the length, and JSON. A process that merely ends, or a model that writes
to descriptors which are not its own, can therefore not pass for a finished verdict. Nothing in it is executed.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator
from typing import Any, TextIO

#: Bytes of the secret, and of a message's length.
_SECRET, _LENGTH = 16, struct.Struct("<Q")

Message = dict[str, Any]


def tell_nobody(kind: str, **content: Any) -> None:
    """Drop the message: the sender where no supervisor listens."""


class Sender:
    """The end of the process that works; forked workers hold a copy, which sends nothing."""

    def __init__(self, descriptor: int, secret: bytes) -> None:
        self._descriptor, self._secret, self._owner = descriptor, secret, os.getpid()

    def send(self, kind: str, **content: Any) -> None:
        """Send a message; the process ends where no one is left to read it."""
        if os.getpid() != self._owner:
            return
        body = json.dumps({"kind": kind, **content}).encode("ascii")
        rest = memoryview(self._secret + _LENGTH.pack(len(body)) + body)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BrokenPipeError:
            os._exit(1)


class Receiver:
    """The supervisor's end: bytes in, complete messages out."""

    def __init__(self, secret: bytes) -> None:
        self._secret, self._pending = secret, bytearray()
        self.disturbed = False

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete with these bytes; none any more once something else was written."""
        self._pending += data
        head = _SECRET + _LENGTH.size
        while len(self._pending) >= head and not self.disturbed:
            if self._pending[:_SECRET] != self._secret:
                self.disturbed = True
                return
            (length,) = _LENGTH.unpack_from(self._pending, _SECRET)
            if len(self._pending) < head + length:
                return
            message = _parsed(self._pending[head : head + length])
            del self._pending[: head + length]
            if message is None:
                self.disturbed = True
                return
            yield message


def _parsed(body: bytearray) -> Message | None:
    """A message; None for what none of ours looks like: foreign code can have replaced what writes them."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("kind"), str) else None


def new_secret() -> bytes:
    """A secret for one pair of ends."""
    return os.urandom(_SECRET)


class Stream(io.TextIOBase):
    """A text stream of ours over the channel, which looks like the terminal (or file, or pipe) at its other end."""

    def __init__(self, sender: Sender, kind: str, real: TextIO) -> None:
        self._sender, self._kind = sender, kind
        self._encoding = getattr(real, "encoding", None) or "utf-8"
        self._tty = real.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream that this one stands in for."""
        return self._encoding

    def isatty(self) -> bool:
        """Whether the real stream is a terminal."""
        return self._tty

    def writable(self) -> bool:
        """True: every text can be sent."""
        return True

    def write(self, text: str) -> int:
        """Send the text to the supervisor, which writes it."""
        self._sender.send(self._kind, text=text)
        return len(text)
