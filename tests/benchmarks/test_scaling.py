"""The benchmark of cost against points: which points it offers, what it keeps, and its table; no time is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import scaling
from benchmarks.records import archived
from maskaudit.data import Dataset

BENCHMARKS = Path(scaling.__file__).parent


def data(n: int) -> Dataset:
    return Dataset("mine", torch.rand(n, 3), torch.arange(n) % 2, 2, (0.0, 1.0))


@pytest.mark.parametrize("n", [4, 10, 11, 35])
def test_points_beyond_the_data_set_are_near_repeats(n: int) -> None:
    have = data(10)
    offered = scaling.offered(have, n)
    assert len(offered) == n
    again = torch.arange(n) % 10
    assert torch.equal(offered.y, have.y[again])
    assert torch.equal(offered.x[:10], have.x[:n])
    assert float((offered.x - have.x[again]).abs().max()) <= scaling.REPEAT_NOISE + 1e-6
    assert len(offered.x.unique(dim=0)) == n, "no point comes twice"


def row(n: int, **changes: Any) -> dict[str, Any]:
    base = {"model": "a", "budget": "quick", "points": n, "drawn": 64, "verdict": "clear", "forwards": 5,
            "backwards": 2, "cpu_seconds": 1.0, "machine": "m"}  # fmt: skip
    return {**base, **changes}


def test_a_new_row_takes_the_place_of_the_old_one() -> None:
    rows = scaling.merged([row(100), row(300), row(100, budget="standard")], row(100, drawn=70))
    assert [(r["budget"], r["points"], r["drawn"]) for r in rows] == [
        ("quick", 100, 70), ("quick", 300, 64), ("standard", 100, 64),
    ]  # fmt: skip


def test_the_committed_table_is_the_committed_figures() -> None:
    rows: list[dict[str, Any]] = []
    for record in archived("scaling.jsonl"):
        rows = scaling.merged(rows, record)
    assert scaling.table(rows) == (BENCHMARKS / "scaling.md").read_text()
    assert len({r["points"] for r in rows}) >= 4
