"""The parts of supervision: the channel, the watch over calls, and the relay of foreign words."""

from __future__ import annotations

import errno
import io
import os
import signal
import struct
import subprocess
import sys

import pytest

from maskaudit import foreign
from maskaudit.command.channel import Receiver, Sender, new_secret
from maskaudit.command.hang_watch import Watch
from maskaudit.command.relayed_output import MOST, OutputRelay
from maskaudit.command.supervise import Ended
from maskaudit.command.supervised import described


def sent(secret: bytes, **content: object) -> bytes:
    reading, writing = os.pipe()
    Sender(writing, secret).send("found", **content)
    os.close(writing)
    with open(reading, "rb") as pipe:
        return pipe.read()


def test_messages_arrive_whole_however_they_are_cut() -> None:
    secret = new_secret()
    data = sent(secret, text="ε\ud800") + sent(secret, text="second")
    receiver = Receiver(secret)
    found = [message for i in range(len(data)) for message in receiver.feed(data[i : i + 1])]
    assert [message["text"] for message in found] == ["ε\ud800", "second"]
    assert not receiver.disturbed


@pytest.mark.parametrize("body", [b"{}", b"[]", b"7", b'{"kind": 1}', b"{", b"[" * 100_000, b"\xff"])
def test_a_message_that_none_of_ours_looks_like_disturbs(body: bytes) -> None:
    secret = new_secret()
    receiver = Receiver(secret)
    assert list(receiver.feed(secret + struct.pack("<Q", len(body)) + body)) == []
    assert receiver.disturbed


def test_a_message_without_the_secret_counts_for_nothing() -> None:
    receiver = Receiver(new_secret())
    assert list(receiver.feed(sent(new_secret(), text="forged"))) == []
    assert receiver.disturbed


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(foreign.time, "monotonic", lambda: self.now)

    def look(self, watch: Watch, seconds: float) -> float | None:
        """Look once a second for so many seconds."""
        for _ in range(int(seconds)):
            self.now += 1.0
            if (late := watch.overdue()) is not None:
                return late
        return None


def test_a_call_past_the_limit_is_overdue_and_many_short_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, board = Clock(monkeypatch), foreign.Board()
    watch = Watch(board, os.getpid())
    watch.limit = 10.0
    for number in range(1, 40, 2):
        board.write(os.getpid(), number)
        assert clock.look(watch, 3) is None
    board.write(os.getpid(), 41)
    assert clock.look(watch, 9) is None
    assert clock.look(watch, 3) == 10.0


def test_the_limit_grows_with_the_longest_call_and_zero_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, board = Clock(monkeypatch), foreign.Board()
    watch = Watch(board, os.getpid())
    board.write(os.getpid(), 1)
    assert clock.look(watch, 100) is None
    board.write(os.getpid(), 3)
    assert clock.look(watch, foreign.USUAL_LIMIT + 10) is None, "a hundred seconds had been seen"
    assert foreign.TIMES_LONGEST > 1
    watch.limit = 0.0
    assert clock.look(watch, 10 * foreign.USUAL_LIMIT) is None


def test_time_in_which_everything_was_suspended_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, board = Clock(monkeypatch), foreign.Board()
    watch = Watch(board, os.getpid())
    watch.limit = 2 * foreign.LONGEST_STEP
    board.write(os.getpid(), 1)
    clock.look(watch, 2)
    clock.now += 3600
    assert watch.overdue() is None


def test_a_child_that_is_stopped_between_two_calls_is_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        clock, watch = Clock(monkeypatch), Watch(foreign.Board(), child.pid)
        watch.limit = 10.0
        assert clock.look(watch, 20) is None
        child.send_signal(signal.SIGSTOP)
        while not foreign.stopped(child.pid):
            pass
        assert clock.look(watch, 9) is None
        assert clock.look(watch, 3) == 10.0
        child.send_signal(signal.SIGCONT)
        while foreign.stopped(child.pid):
            pass
        assert clock.look(watch, 20) is None
        child.kill()
    assert not foreign.stopped(child.pid), "there is none"


MARKED = """
import os
from maskaudit import foreign
board = foreign.Board()
foreign.mark_calls(board)
for _ in range(2):
    try:
        with foreign.Call(), foreign.Call():
            print(list(board.lasting()) == [os.getpid()])
            raise KeyError
    except KeyError:
        print(board.lasting())
"""


def test_a_call_is_marked_while_it_lasts_also_when_it_raises() -> None:
    printed = subprocess.run([sys.executable, "-c", MARKED], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["True", "{}", "True", "{}"]


def relayed(*parts: bytes) -> str:
    stream = io.StringIO()
    relay = OutputRelay(stream)
    for part in parts:
        relay.feed(part)
    relay.close()
    return stream.getvalue()


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ((b"one\ntwo",), "one\ntwo\n"),
        ((b"gr\xc3", b"\xb6\xc3\x9fer\n"), "größer\n"),
        ((b"\x1b[2J\x07bell\n",), " [2J bell\n"),
        ((b" 10%\r 50%\r100%\n",), "100%\n"),
        ((b"windows\r\n",), "windows\n"),
        ((b"\xff\n",), "\N{REPLACEMENT CHARACTER}\n"),
    ],
)
def test_foreign_words_are_cleaned_line_by_line(parts: tuple[bytes, ...], shown: str) -> None:
    assert relayed(*parts) == shown


@pytest.mark.parametrize("part", [b"line\n" * 20_000, b"x" * 100_000, b"\r50%" * 25_000], ids=["lines", "word", "bar"])
def test_a_stream_of_foreign_words_is_cut_off_with_one_note(part: bytes) -> None:
    shown = relayed(*[part] * (3 * MOST // len(part)))
    assert len(shown) < MOST + 1000
    assert shown.count("not shown") == 1
    assert shown.endswith("what follows is not shown.\n")


def test_a_status_is_cleared_before_foreign_words() -> None:
    stream = io.StringIO()
    relay = OutputRelay(stream)
    relay.ours("\r\x1b[Kworking …")
    relay.feed(b"foreign\n")
    assert stream.getvalue() == "\r\x1b[Kworking …\r\x1b[Kforeign\n"


LACKS = [(OSError(errno.EMFILE, "too many"), "no more files"), (MemoryError(), "no memory left")]


@pytest.mark.parametrize(("error", "says"), LACKS, ids=str)
def test_what_the_machine_lacks_is_no_fault_of_ours(error: Exception, says: str) -> None:
    ended = Ended({"broke": described(error)})
    assert ended.trace == ""
    sentence, status = ended.why()
    assert says in sentence
    assert status == 4
    assert Ended({"broke": described(OSError(errno.EIO, "damaged"))}).why()[1] == 70
