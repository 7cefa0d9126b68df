"""The table of prices counts what both files hold, and says what it cannot compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.price import main, pairs


def record(model: str, label: str, passes: int, *, weights: str = "w", status: str = "ran") -> dict[str, Any]:
    return {
        "kind": "audit", "model": model, "weights": weights, "seed": 0, "budget": "standard", "code": "c", "peer": "",
        "points": 0, "machine": "here", "status": status, "reason": "", "seconds": 1.0, "cpu_seconds": 1.0,
        "forwards": passes, "backwards": 0,
        "document": {"verdict": {"label": label}, "points": {"index": [1, 2]}},
    }  # fmt: skip


def test_medians_and_labels_of_what_both_hold(tmp_path: Path) -> None:
    before = [record("standard", "clear", 1000), record("quantised", "masked", 3000), record("trades", "clear", 9)]
    after = [
        record("quantised", "masked", 300, weights="v"), record("standard", "masked", 500),
        record("trades", "clear", 9, status="timeout"),
    ]  # fmt: skip
    files = [tmp_path / "before.jsonl", tmp_path / "after.jsonl"]
    for file, records in zip(files, (before, after), strict=True):
        file.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert [old["model"] for old, _ in pairs(*files)] == ["standard", "quantised"]
    main([*map(str, files), "--out", str(tmp_path / "price.md")])
    text = (tmp_path / "price.md").read_text()
    assert "| all | 2 | 2 | 1 | 2,000 | 400 | 0.20 |" in text
    assert "same before and after in 1 of them" in text
    assert "| quantised | tune | masked | masked | masked | 2 | 2 | 3,000 | 300 | 0.10 |" in text
