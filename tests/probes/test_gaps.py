"""Probes that compare attacks, on masks written by hand."""

from __future__ import annotations

import dataclasses

import pytest

from maskaudit.probes.interface import AttackOutcome, NotApplicable
from maskaudit.probes.run import run_probe
from maskaudit.results import ProbeResult
from maskaudit.verdict.statistics import clopper_pearson

from .toys import Linear, context, get, outcome, points

N = 40


def some(count: int, start: int = 0) -> list[int]:
    return [int(start <= i < start + count) for i in range(N)]


def graded(rule: str, *attacks: AttackOutcome, strong: list[int] | None = None) -> ProbeResult:
    with context(Linear(6), points(N, 6)) as ctx:
        mask = outcome("strong", strong or some(0)).broken
        ctx = dataclasses.replace(ctx, attacks={item.row.name: item for item in attacks}, strong=mask)
        return run_probe(get(rule), ctx)


REFERENCE = outcome("pgd", some(8), role="reference")


@pytest.mark.parametrize(
    ("rule", "kind"),
    [("gradient-free-gap", "score"), ("transfer-gap", "transfer"), ("random-beats-gradient", "random")],
)
def test_gap_is_paired_with_the_strong_attacks(rule: str, kind: str) -> None:
    first, second = outcome("a", some(10), kind=kind), outcome("b", some(10, start=5), kind=kind)
    result = graded(rule, REFERENCE, first, second, strong=some(9))
    assert result.status == "pass" if (result.low or 0) <= 0.035 else result.status == "finding"
    assert (result.value, result.n) == (6 / N, N)  # 15 broken by either, 9 of them by strong attacks too
    assert (result.low, result.high) == clopper_pearson(6, N)
    assert result.details["attacks"] == {"a": 10, "b": 10}
    assert result.details["raw_gap_to_reference"] == pytest.approx((15 - 8) / N)
    assert result.details["only_rival"] == 0


@pytest.mark.parametrize(
    ("rule", "kind"),
    [("gradient-free-gap", "score"), ("transfer-gap", "transfer"), ("random-beats-gradient", "random")],
)
def test_large_gap_is_a_finding_and_two_stray_points_are_not(rule: str, kind: str) -> None:
    assert graded(rule, REFERENCE, outcome("a", some(20), kind=kind), strong=some(8)).status == "finding"
    assert graded(rule, REFERENCE, outcome("a", some(10), kind=kind), strong=some(8)).status == "pass"
    assert graded(rule, REFERENCE, outcome("a", some(8), kind=kind), strong=some(30)).value == 0


def test_attacks_that_did_not_run_or_answer_other_questions_are_left_out() -> None:
    others = (
        outcome("error", some(N), kind="score", status="error"),
        outcome("repaired", some(N), kind="score", role="repaired"),
        outcome("torchattacks:Square", some(N), kind="score", role="second_opinion"),
    )
    result = graded("gradient-free-gap", REFERENCE, *others)
    assert result.status == "not_applicable"
    assert "uses scores only" in result.reason
    assert graded("gradient-free-gap", *others, outcome("square", some(3), kind="score")).value == 3 / N


def test_one_step_is_compared_with_the_reference_point_by_point() -> None:
    result = graded("one-step-beats-iterative", REFERENCE, outcome("fgsm", some(16, start=4), role="strong"))
    assert result.value == 12 / N
    assert result.status == "finding"
    assert result.details["only_rival"] == 4
    assert graded("one-step-beats-iterative", REFERENCE, outcome("fgsm", some(8))).status == "pass"
    assert graded("one-step-beats-iterative", REFERENCE).status == "not_applicable"
    assert graded("one-step-beats-iterative", outcome("fgsm", some(8))).status == "not_applicable"


def test_unbounded_attack_must_reach_all_points() -> None:
    sanity = {"role": "sanity"}
    healthy = graded("unbounded-attack", REFERENCE, outcome("unbounded", some(N), **sanity))  # type: ignore[arg-type]
    assert (healthy.status, healthy.value) == ("pass", 0.0)
    masked = graded("unbounded-attack", REFERENCE, outcome("unbounded", some(30), **sanity))  # type: ignore[arg-type]
    assert (masked.status, masked.value) == ("finding", 0.25)
    assert graded("unbounded-attack", REFERENCE).status == "not_applicable"


def test_the_unbounded_attack_is_never_taken_for_the_reference() -> None:
    sanity = outcome("unbounded", some(N), role="sanity")
    result = graded("one-step-beats-iterative", sanity, REFERENCE, outcome("fgsm", some(N)))
    assert result.details["broken_by_rival"] == 8


def test_without_strong_attacks_there_is_nothing_to_compare_with() -> None:
    with context(Linear(6), points(N, 6)) as ctx:
        ctx = dataclasses.replace(ctx, attacks={"square": outcome("square", some(3), kind="score")})
        with pytest.raises(NotApplicable):
            get("gradient-free-gap").measure(ctx)
