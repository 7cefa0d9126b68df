"""Once the verdict is decided, further points serve the accuracy that was asked for, and only that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from maskaudit.auditing.phases import accuracy
from maskaudit.errors import UsageError
from maskaudit.results import AuditReport, Rate
from maskaudit.settings import BUDGETS, AuditSettings

from .linear_audits import Rounded, by_name, linear


def audited(front: nn.Module | None = None, eps: float = 0.9, **settings: Any) -> AuditReport:
    """A linear model on 300 points that it classifies as they are labelled, nearly all of which break."""
    return linear(eps, front, points=300, **settings)


@pytest.mark.parametrize(("samples", "drawn"), [(None, 56), (40, 40), (150, 150), (1000, 300), ("all", 300)])
def test_as_many_points_are_drawn_as_were_asked_for(samples: int | str | None, drawn: int) -> None:
    report = audited(samples=samples)
    assert report.settings["samples"] == len(report.points["index"]) == drawn
    assert report.accuracy["best_known"].n == drawn  # type: ignore[union-attr]
    assert by_name(report)["pgd"].attempted == drawn
    assert report.verdict.label == ("inconclusive" if drawn < 50 else "clear")
    assert report.masking["loss_level"].n == min(drawn, 56), "the verdict rests on the points that decided it"


@pytest.mark.heavy
def test_further_points_of_a_masked_model_meet_what_broke_the_first() -> None:
    report = audited(Rounded(), eps=0.3, samples=150)
    rows = by_name(report)
    assert report.verdict.label == "masked"
    assert report.masking["gradient_level"].n == 32
    assert rows["repaired"].attempted > 100
    assert rows["noise"].attempted == 0, "it was not needed for the verdict"
    assert rows["apgd-ce-restarts"].attempted <= 32 if "apgd-ce-restarts" in rows else True
    assert sum("repaired" in names for names in report.points["broken_by"][32:]) > 20
    assert _best(report).n == 150


def test_points_are_drawn_until_the_interval_is_narrow_enough() -> None:
    wide, narrow = audited(), audited(precision=0.03)
    reach = [max(rate.high - rate.value, rate.value - rate.low) for r in (wide, narrow) if (rate := _best(r))]
    assert reach[1] <= 0.03 < reach[0]
    assert narrow.settings["precision"] == 0.03
    assert narrow.settings["samples"] < 300
    assert audited(precision=0.001).settings["samples"] == 300, "no more than there are"
    assert audited(precision=0.001, samples=100).settings["samples"] == 100


def _best(report: AuditReport) -> Rate:
    rate = report.accuracy["best_known"]
    assert rate is not None
    return rate


@pytest.mark.parametrize(("claim", "drawn", "status"), [(0.9, 56, "refuted"), (0.005, 128, "not_refuted")])
def test_a_claim_that_is_not_refuted_yet_is_given_more_points(claim: float, drawn: int, status: str) -> None:
    report = audited(claim=claim)
    assert (report.claim.status, report.settings["samples"]) == (status, drawn)
    assert drawn <= BUDGETS["quick"].claim_points


@pytest.mark.parametrize(("share", "reach", "half", "wanted"), [
    (0.5, 0.1, 0.2, 100), (0.5, 0.1, 0.1, 100), (0.5, 0.1, 0.08, 157), (0.5, 0.1, 0.01, 200), (0.5, 0.1, 0.0999, 111),
])  # fmt: skip
def test_how_many_points_a_width_takes(share: float, reach: float, half: float, wanted: int) -> None:
    rate = Rate(share, share - reach, share + reach, 100)
    state = SimpleNamespace(
        ledger=range(100), data=range(10_000), looks=(100,), settings=AuditSettings(precision=half),
        judgement=SimpleNamespace(accuracy={"best_known": rate}),
    )  # fmt: skip
    assert accuracy.wanted(state) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"samples": "some"}, {"samples": 0}, {"precision": 0}, {"precision": 0.6}])
def test_what_is_no_number_of_points_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        AuditSettings(**wrong)
