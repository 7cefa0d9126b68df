"""Writing to terminals: progress on stderr, one plain line per finished step or one line that is rewritten."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, TextIO

from maskaudit.command import streams
from maskaudit.errors import without_controls
from maskaudit.report import words
from maskaudit.verdict.numerals import duration

if TYPE_CHECKING:
    from maskaudit.settings import AuditEvent


class ProgressLine:
    """Listener for audits and trainings; never writes to stdout.

    Args:
        quiet: say nothing.
        stream: where to write, stderr by default.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream
        self.quiet = quiet
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.started = time.monotonic()
        self.steps = self.done = 0
        self.left: float | None = None

    @property
    def stream(self) -> TextIO:
        """Where it writes; asked for each time, since a child process has another standard error."""
        return self._stream if self._stream is not None else streams.err()

    def __call__(self, event: AuditEvent) -> None:
        """Show one event."""
        if event.total:
            self.steps, self.done = event.total, 0
        self.done += event.finished
        self.left = event.left
        if event.finished:
            seconds = f"  ({words.seconds(event.seconds)})" if event.seconds else ""
            left = "" if self.live else f"  {self._left()}".rstrip()  # a terminal has it in its status line
            self.line(f"{event.step:<28} {event.outcome}{seconds}{left}")
        else:
            what = f"{event.step} on {event.points} points …" if event.points else f"{event.step} …"
            self.status(self._left() + what)

    def line(self, text: str) -> None:
        """Write a line that stays, with the time since the start, in place of the status line."""
        if self.quiet:
            return
        elapsed = time.monotonic() - self.started
        self._write(("\r\x1b[K" if self.live else "") + f"[{elapsed:6.1f} s] {without_controls(text)}\n")

    def status(self, text: str) -> None:
        """What is being done right now; shown only where it can be overwritten."""
        if self.quiet or not self.live:
            return
        self._write("\r\x1b[K" + without_controls(text)[: max(10, _columns(self.stream) - 1)])

    def _left(self) -> str:
        """How many steps of this look are done, and how long the rest takes, where that was told."""
        if not self.steps or not self.done:
            return ""
        left = "" if self.left is None else f", about {time_left(self.left)} left"
        return f"[{min(self.done, self.steps)}/{self.steps}{left}] "

    def close(self) -> None:
        """Clear the status line."""
        if self.live and not self.quiet:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        say(text, self.stream)


def time_left(seconds: float) -> str:
    """An estimate in words: `7 s`, `70 min`."""
    return duration(round(seconds))


def say(text: str, stream: TextIO) -> None:
    """Write to a terminal, a pipe or a file of any encoding: what it cannot show becomes a question mark.

    A stream that cannot be written any more costs no result; see `maskaudit.command.streams.results_lost`.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
    except OSError as error:
        streams.give_up(stream, error)


def use_colour(stream: TextIO) -> bool:
    """Whether to emphasise with ANSI sequences: a real terminal, and NO_COLOR not set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _columns(stream: TextIO) -> int:
    """Width of the terminal at the end of a stream; COLUMNS goes before it, as everywhere; 80 where it is unknown."""
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"])
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    with contextlib.suppress(OSError), open("/dev/tty", "rb", buffering=0) as terminal:  # a supervised process
        return os.get_terminal_size(terminal.fileno()).columns or 80
    return 80
