"""Progress: plain lines without a terminal, one rewritten line with one, and nothing that could steer it."""

from __future__ import annotations

import dataclasses
import io
import re
import sys

import pytest

from maskaudit.command.terminal import ProgressLine, use_colour
from maskaudit.errors import without_controls
from maskaudit.settings import AuditEvent


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


EVENTS = (
    AuditEvent("square", 200),
    AuditEvent("square", 200, True, "broke 3 of 200", 1.25),
    AuditEvent("judge", 0),
    AuditEvent("judge", 0, True, "clear"),
)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown(stream: io.StringIO, *, quiet: bool = False) -> str:
    progress = ProgressLine(quiet=quiet, stream=stream)
    for event in EVENTS:
        progress(event)
    progress.close()
    return stream.getvalue()


def test_without_a_terminal_one_plain_line_per_finished_step() -> None:
    text = shown(io.StringIO())
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert [re.sub(r"^\[ *[\d.]+ s\] ", "", line) for line in lines] == [
        "square                       broke 3 of 200  (1.2 s)",
        "judge                        clear",
    ]


def test_a_log_counts_the_steps_and_says_how_long_the_rest_takes() -> None:
    progress = ProgressLine(stream=(stream := io.StringIO()))
    for event in (AuditEvent("audit", 200, total=4), *(dataclasses.replace(e, left=7.0) for e in EVENTS)):
        progress(event)
    counted = re.findall(r"\[(\d/\d), about 7 s left\]$", stream.getvalue(), re.MULTILINE)
    assert counted == ["1/4", "2/4"]


def test_a_long_rest_is_told_as_other_durations_are() -> None:
    progress = ProgressLine(stream=(stream := io.StringIO()))
    for event in (AuditEvent("audit", 200, total=4), dataclasses.replace(EVENTS[-1], left=4213.0, seconds=185.0)):
        progress(event)
    assert stream.getvalue().endswith("  (3 min 05 s)  [1/4, about 70 min left]\n")


def test_a_log_names_no_time_before_one_is_known() -> None:
    progress = ProgressLine(stream=(stream := io.StringIO()))
    for event in (AuditEvent("audit", 200, total=4), *EVENTS):
        progress(event)
    assert re.findall(r"\[(\d/\d)\]$", stream.getvalue(), re.MULTILINE) == ["1/4", "2/4"]


def test_on_a_terminal_the_status_is_overwritten_and_cleared() -> None:
    text = shown(Terminal())
    assert "square on 200 points …" in text
    assert "judge …" in text
    assert text.endswith("\r\x1b[K")
    assert text.count("\n") == 2


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown(Terminal())


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_says_nothing(stream: type[io.StringIO]) -> None:
    assert shown(stream(), quiet=True) == ""


def test_the_status_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    ProgressLine(stream=stream).status("x" * 500)
    assert stream.getvalue() == "\r\x1b[K" + "x" * 29


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressLine().line("done")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("done\n")


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\r", "\n", "\x07", "\x9b31m", "\u202e", "\u2028"])
def test_text_from_files_cannot_steer_the_terminal(hostile: str) -> None:
    assert without_controls(f"a{hostile[0]}b") == "a b"
    stream = io.StringIO()
    ProgressLine(stream=stream).line(f"model{hostile}name")
    assert stream.getvalue().count("\n") == 1
    assert not set(stream.getvalue()[:-1]) & set("\x1b\r\n\x07\x9b\u202e\u2028")


def test_ordinary_text_is_left_alone() -> None:
    assert without_controls("ε = 8/255 · größer ✓") == "ε = 8/255 · größer ✓"


def test_a_stream_that_cannot_show_a_character_gets_a_substitute() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    ProgressLine(stream=stream).line("ε …")
    assert stream.buffer.getvalue().endswith(b"? ?\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("stream", "variables", "expected"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colour(
    stream: io.StringIO, variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert use_colour(stream) is expected


def test_the_default_stream_is_found_when_progress_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = io.StringIO()
    monkeypatch.setattr(sys, "stderr", replaced)
    ProgressLine().line("here")
    assert "here" in replaced.getvalue()


def test_a_terminal_shows_how_far_and_how_long_still() -> None:
    stream = Terminal()
    progress = ProgressLine(stream=stream)
    progress(AuditEvent("audit", 8, total=4))
    progress(AuditEvent("pgd", 8, True, "broke 2 of 8"))
    progress(AuditEvent("square", 8, left=0.2))
    assert "[1/4, about 0 s left] square on 8 points" in stream.getvalue()
