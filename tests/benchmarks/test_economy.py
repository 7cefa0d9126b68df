"""What white-box attacks find next to AutoAttack, and at what price."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.economy import economy, pair_of
from maskaudit.zoo import ZOO


def audit(model: str = "pgd-at", **changes: Any) -> dict[str, Any]:
    points = {"index": [7, 3, 5, 9], "correct": [1, 1, 1, 0], "broken_by": [[1], [], [1], []]}
    spent = {"forwards": 60, "backwards": 40, "seconds": 1.0, "unbroken": [1, 1, 0, 0]}
    return {
        "model": model, "seed": 0, "forwards": 200, "backwards": 100, "cpu_seconds": 3.0, "own": spent,
        "document": {"points": points}, **changes,
    }  # fmt: skip


def run(model: str = "pgd-at", **changes: Any) -> dict[str, Any]:
    return {
        "model": model, "seed": 0, "peer": "autoattack", "status": "ran", "index": [3, 5, 7], "unbroken": [1, 1, 1],
        "indicators": {"randomized": False}, "forwards": 600, "backwards": 400, "cpu_seconds": 10.0, **changes,
    }  # fmt: skip


def test_points_are_paired_by_their_number_and_costs_are_shares() -> None:
    pair = pair_of(audit(), run())
    assert (pair.white_box, pair.best, pair.theirs, pair.points) == (2, 1, 3, 3)
    assert (pair.white_box_passes, pair.passes, pair.white_box_cpu, pair.cpu) == pytest.approx((0.075, 0.3, 0.075, 0.3))


def test_models_are_told_apart_by_mask_and_accuracy() -> None:
    models = ["pgd-at", "standard", "quantised"]
    runs = [run("pgd-at"), run("standard", unbroken=[0, 0, 0]), run("quantised")]
    page = "\n".join(economy([audit(model) for model in models], runs, ZOO))
    assert "| not masked, accuracy of at least 0.3 under AutoAttack | 1 | 1 | 1 | 0.08 (0.08–0.08)" in page
    assert "| not masked, the others | 1 | 0 | 0 |" in page
    assert "| masked | 1 | 1 | 1 |" in page
    assert "| pgd-at | 3 | 3 | 2 | 1 | 0.075 | 0.075 |" in page


@pytest.mark.parametrize(
    "changed",
    [
        run(indicators={"randomized": True}), run(status="timeout"), run(unbroken=None), run(peer="binarization"),
        run(seed=1),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_left_out(changed: dict[str, Any]) -> None:
    assert economy([audit()], [changed], ZOO) == []


def test_records_from_before_the_count_are_left_out() -> None:
    old = audit()
    del old["own"]
    assert economy([old], [run()], ZOO) == []
