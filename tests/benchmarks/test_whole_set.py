"""The table of whole test sets on plain records: the newest audit counts, and points are held against each other."""

from __future__ import annotations

from typing import Any

from benchmarks import whole_set


def record(kind: str, unbroken: list[int], seconds: float) -> dict[str, Any]:
    return {
        "kind": kind, "model": "net", "points": 4, "commit": "abc", "machine": "here", "label": "clear",
        "unbroken": unbroken, "forwards": 1_000, "backwards": 500, "cpu_seconds": seconds,
    }  # fmt: skip


def test_the_newest_audit_is_held_against_autoattack_point_by_point() -> None:
    runs = [record("audit", [1, 1, 1, 1], 9), record("autoattack", [1, 1, 0, 0], 8), record("audit", [1, 0, 1, 0], 2)]
    row = whole_set.render(runs).splitlines()[-1]
    assert row == "| net | 4 | clear | 2 | 2 | 1 | 1 | 1,500 | 1,500 | 2 | 8 | 0.25 |"


def test_an_audit_without_its_counterpart_has_no_row() -> None:
    assert "| net |" not in whole_set.render([record("audit", [1], 1)])
