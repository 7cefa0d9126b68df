"""The time left that a log gives is read at the moments that count."""

from __future__ import annotations

from benchmarks.eta import read

LOG = """\
[   0.5 s] zero-gradient                share of points 0%
[   1.0 s] pgd                          broke 3 of 32  (0.5 s)  [9/30, about 9 s left]
[   4.0 s] square                       broke 4 of 32  (2.0 s)  [12/30, about 2 s left]
[   7.0 s] judge                        clear  [30/30, about 2 s left]
"""


def test_the_last_words_before_each_moment_count() -> None:
    found = read(LOG, 8.0)
    assert [(one.moment, one.seconds, one.true) for one in found] == [
        (0.25, 8.0, 6.0),
        (0.5, 2.0, 4.0),
        (0.75, 0.0, 2.0),
    ]
    assert [one.near for one in found] == [True, False, False]


def test_minutes_and_hours_are_read_as_well() -> None:
    log = "[   1.0 s] pgd  broke 3 of 32  [9/30, about 2.5 min left]\n[   2.0 s] judge  [30/30, about 1.2 h left]"
    assert [one.seconds for one in read(log, 4.0)] == [150.0, 4320.0, 4319.0]


def test_a_silent_log_says_nothing() -> None:
    assert read(LOG.splitlines()[0], 8.0) == []
