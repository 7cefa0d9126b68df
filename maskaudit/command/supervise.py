"""Run work in a child process and learn what becomes of it, whatever ends it.

Foreign code can end its process (`sys.exit`, `os._exit`, a native crash, lack of memory), hang, or write to standard
output. The supervisor loads no torch and runs nothing foreign: it passes on what the work says, cleans what foreign
code prints, forwards Ctrl-C and SIGTERM, watches for calls that never return, and finally says how the work ended.
The child has a process group of its own, so that nothing it started outlives it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from maskaudit import foreign
from maskaudit.command import streams
from maskaudit.command.channel import Message, Receiver, Sender, new_secret
from maskaudit.command.hang_watch import Watch
from maskaudit.command.relayed_output import OutputRelay
from maskaudit.command.status import BUG_STATUS, MODEL_FAILED_STATUS
from maskaudit.command.supervised import FORWARDED, Work, be_the_child
from maskaudit.command.terminal import say
from maskaudit.errors import without_controls

#: Seconds that finished work is given to end, and that interrupted work is given to report.
ENDING, REPORTING = 10.0, 60.0
#: Most reads after the end of the child: more than a pipe holds.
LAST_READS = 32
#: Seconds between two looks at the calls in progress.
TICK = 1.0

#: What is reported where something of the machine was used up.
_LACKED = {
    "memory": "there was no memory left; try a smaller --batch-size or fewer --workers",
    "files": "no more files could be opened; does the model leave open what it opens?",
}


@dataclass
class Ended:
    """How supervised work ended.

    Attributes:
        messages: the last message of each kind, `out` and `err` excepted.
        reason: what ended it, if it was not an exception, in words that follow "it ended because".
        signum: the signal by which the user or the system asked it to stop, if any.
        at_once: whether it was asked twice.
        shown: what it wrote to standard output and was held back.
    """

    messages: dict[str, Message] = field(default_factory=dict)
    reason: str = ""
    signum: int = 0
    at_once: bool = False
    shown: str = ""

    @property
    def finished(self) -> bool:
        """Whether the work came to its end and reported it; `why` explains everything else."""
        return "end" in self.messages

    @property
    def trace(self) -> str:
        """The traceback of a fault of ours that ended it, if one did, without control characters."""
        broke = self.messages.get("broke")
        plain = broke is None or broke["exit"] or broke["lacked"] or self.reason or self.signum
        lines = [] if broke is None or plain else str(broke["trace"]).splitlines()
        return "".join(without_controls(line) + "\n" for line in lines)

    def status(self, given: int) -> int:
        """The exit status of finished work that says its own; an interruption that was not asked for is the model's."""
        return MODEL_FAILED_STATUS if given > 128 and not self.signum else given

    def why(self) -> tuple[str, int]:
        """Why it did not finish, as a sentence, and the exit status for it."""
        broke = self.messages.get("broke", {"error": "", "text": "", "lacked": ""})
        raised = f"{broke['error']} ({broke['text']})" if broke["text"] else broke["error"]
        if self.signum:
            return f"Interrupted before it was finished: {self.reason or raised}.", 128 + self.signum
        if self.trace:
            return f"{raised}: this is a fault of maskaudit, not of the model; please report it.", BUG_STATUS
        if broke["lacked"]:
            reason = _LACKED[broke["lacked"]]
        else:
            reason = self.reason or f"the model, or a library that it uses, raised {raised}"
        return f"The run ended before it was finished: {reason}.", MODEL_FAILED_STATUS


def possible() -> bool:
    """Whether work can be supervised here: processes can be forked, and this one is not debugged."""
    return hasattr(os, "fork") and not os.environ.get("MASKAUDIT_UNSUPERVISED") and sys.gettrace() is None


def supervise(work: Work, *, hold_output: bool = False) -> Ended:
    """Run work in a child until it ends.

    Args:
        work: runs in the child, with the sending end of the channel.
        hold_output: keep what the work writes to standard output for `Ended.shown` instead of passing it on.
    """
    for stream in (streams.out(), streams.err(), sys.stdout, sys.stderr):
        stream.flush()
    board, secret = foreign.Board(), new_secret()
    channel, sending = os.pipe()
    printed, printing = os.pipe()
    with _signals() as wakeup:
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (channel, printed, *wakeup):  # what the supervisor reads is not for foreign code
                os.close(descriptor)
            be_the_child(work, Sender(sending, secret), printing, board)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        os.close(sending)
        os.close(printing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        try:
            return _Supervisor(pid, board, Receiver(secret), hold_output).run(channel, printed, wakeup[0])
        finally:
            os.close(channel)
            os.close(printed)


class _Supervisor:
    """One child, from its start to its end."""

    def __init__(self, pid: int, board: foreign.Board, receiver: Receiver, hold_output: bool) -> None:
        self.pid, self.receiver, self.hold_output = pid, receiver, hold_output
        self.ended = Ended()
        self.relay = OutputRelay(streams.err())
        self.watch = Watch(board, pid)
        self.deadline: float | None = None
        self.killed = ""

    def run(self, channel: int, printed: int, wakeup: int) -> Ended:
        with selectors.DefaultSelector() as selector:
            readers = {channel: self._messages, printed: self.relay.feed, wakeup: self._signals}
            for descriptor in readers:
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ)
            while not (gone := self._gone()):
                for key, _ in selector.select(TICK):
                    if not _read(key.fd, readers[key.fd]):
                        selector.unregister(key.fd)
                self._look()
            self._end()
            for descriptor in (channel, printed):  # what it wrote last; whom it left behind may write for ever
                for _ in range(LAST_READS):
                    if not _read(descriptor, readers[descriptor], once=True):
                        break
        self.relay.close()
        os.waitpid(self.pid, 0)
        if not self.ended.finished:
            self.ended.reason = self._obituary(*gone)
        return self.ended

    def _gone(self) -> tuple[int, int] | None:
        """How the child ended (`si_code`, `si_status`), still unburied; None while it lives."""
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if found is None else (found.si_code, found.si_status)

    def _messages(self, data: bytes) -> None:
        for message in self.receiver.feed(data):
            kind = message["kind"]
            if kind == "err":
                self.relay.ours(message["text"])
            elif kind == "out" and self.hold_output:
                self.ended.shown += message["text"]
            elif kind == "out":
                say(message["text"], streams.out())
            else:
                self.ended.messages[kind] = message
            if kind == "asked":
                self.watch.limit = message["call_timeout"]
            if kind in ("end", "broke"):
                self.deadline = time.monotonic() + ENDING

    def _signals(self, data: bytes) -> None:
        for signum in data:
            if signum == signal.SIGTSTP:
                self._send(signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGSTOP)
                self._send(signal.SIGCONT)
            elif signum != signal.SIGCHLD:
                self._stop(signum)

    def _stop(self, signum: int) -> None:
        """Ask the work to stop; the second time end it."""
        if self.ended.signum:
            self.ended.at_once = True
            self._kill("it was interrupted twice")
            return
        self.ended.signum = signum
        self.deadline = time.monotonic() + REPORTING
        os.kill(self.pid, signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)
        self.relay.ours(
            "maskaudit: interrupted; the batch in progress is finished first; interrupt again to stop at once.\n"
        )

    def _look(self) -> None:
        """Whether foreign code prints too much, a call or an end takes too long, or the channel was disturbed."""
        if self.relay.full:
            self.watch.board.ask_silence()
        if (lasted := self.watch.overdue()) is not None:
            self._kill(
                f"the model, or code of yours, did not answer within {lasted:.0f} s; allow more time per call with "
                "--call-timeout SECONDS"
            )
        elif self.receiver.disturbed:
            self._kill("something other than maskaudit wrote into its private channel")
        elif self.deadline is not None and time.monotonic() > self.deadline:
            self._kill("it did not end when asked to")

    def _kill(self, why: str) -> None:
        self.killed = self.killed or why
        self._end()

    def _end(self) -> None:
        """End the child, wherever it has moved to, and what it started."""
        self._send(signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)

    def _send(self, signum: int) -> None:
        with contextlib.suppress(OSError):  # foreign code can have left the group
            os.killpg(self.pid, signum)

    def _obituary(self, code: int, status: int) -> str:
        """What ended it from outside; empty where it was an exception."""
        if self.killed:
            return self.killed
        if "broke" in self.ended.messages:
            return ""
        if code == os.CLD_EXITED:
            return f"the model, or a library that it uses, ended the process with status {status}"
        name = signal.Signals(status).name if status in signal.valid_signals() else f"signal {status}"
        if status == signal.SIGKILL:
            return (
                f"the process was killed ({name}), most often for lack of memory; try a smaller --batch-size or fewer "
                "--workers"
            )
        return f"the model, or a library that it uses, crashed in native code or was ended by a signal ({name})"


def _read(descriptor: int, take: Callable[[bytes], None], *, once: bool = False) -> bool:
    """Read what is there; False at the end of the stream, with `once` also where nothing is there."""
    try:
        data = os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return not once
    if data:
        take(data)
    return bool(data)


@contextlib.contextmanager
def _signals() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe on which signals arrive as bytes; they are blocked until the child is there."""
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_blocking(descriptor, False)
    handlers = {}
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for signum in FORWARDED:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
            handlers[signum] = signal.signal(signum, lambda signum, frame: None)
    try:
        yield reading, writing
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.close(reading)
        os.close(writing)
