"""What the judge is given of what ran: missing parts, and which of them take the proof from a level."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from maskaudit.results import AttackRow, Mechanism, ProbeResult, plain, revived
from maskaudit.verdict.recorded import Recorded, observations
from maskaudit.verdict.rules import judge

POINTS, HIDDEN = 100, 60


def row(name: str, role: Any, part: Any = "", family: Any = None, **changes: Any) -> AttackRow:
    base = AttackRow(
        name, name, "gradient", role, family, None, 0, POINTS, 0, 0, 0, 0, 0.0, part=part, decisive=True
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


ROWS = {
    one.name: one
    for one in (
        row("pgd", "reference", "reference", "cross_entropy"),
        row("apgd-ce", "strong", "cross_entropy", "cross_entropy"),
        row("apgd-ce-restarts", "strong", "cross_entropy", "cross_entropy"),
        row("apgd-margin", "strong", "other_loss", "other_loss"),
        row("noise", "challenger"),
        row("square", "challenger", "gradient_free"),
    )
}


def recorded(by: str, without: tuple[str, ...] = (), *, failed: str = "", **changes: Any) -> Recorded:
    """Sixty of a hundred points that only one attack breaks; some attacks and probes were left out, one failed."""
    rows = [one for one in ROWS.values() if one.name not in without]
    rows = [dataclasses.replace(one, status="error", reason="it broke") if one.name == failed else one for one in rows]
    left_out = {name: ROWS[name].part if name in ROWS else "" for name in without}
    broken_by = [[by]] * HIDDEN + [["pgd"]] * (POINTS - HIDDEN)
    return Recorded([True] * POINTS, broken_by, rows, left_out=left_out, **changes)


@pytest.mark.parametrize(("by", "without", "failed", "label", "sentence"), [
    ("noise", (), "", "masked", "withstand all 4 white-box attacks that ran"),
    ("apgd-margin", (), "", "masked", "withstand all 3 attacks on cross-entropy that ran"),
    # what would prove nothing: the attacks that might have broken these points did not run
    ("noise", ("apgd-margin",), "", "inconclusive", "it lacks white-box attacks on other losses"),
    ("noise", ("apgd-ce", "apgd-ce-restarts"), "", "inconclusive", "further white-box attacks on cross-entropy"),
    ("noise", ("apgd-ce", "apgd-ce-restarts", "apgd-margin"), "", "inconclusive", "60 of 100 points seem hidden"),
    ("apgd-margin", ("apgd-ce-restarts",), "", "inconclusive", "it lacks apgd-ce-restarts"),
    ("apgd-margin", (), "apgd-ce", "inconclusive", "Essential part failed: apgd-ce: it broke"),
    ("noise", (), "apgd-margin", "inconclusive", "white-box attacks on other losses"),
    # what the examples prove all the same
    ("noise", ("square",), "", "masked", "gradient-free attacks"),
    ("noise", ("zero-gradient", "unbounded-attack"), "", "masked", "zero-gradient"),
    ("noise", (), "square", "masked", "Essential part failed: square"),
    # one run of many on cross-entropy says nothing against a gap at gradient level
    ("noise", ("apgd-ce-restarts",), "", "masked", "withstand all 3 white-box attacks"),
])  # fmt: skip
def test_a_missing_part(by: str, without: tuple[str, ...], failed: str, label: str, sentence: str) -> None:
    verdict = judge(observations(recorded(by, without, failed=failed))).verdict
    assert verdict.label == label
    assert sentence in " ".join(verdict.reasons)
    if label == "masked" and set(without) - {"apgd-ce-restarts"}:
        assert "The examples prove it, although this did not run or failed: " in verdict.sentence
        assert sentence in verdict.sentence


@pytest.mark.parametrize("without", ["zero-gradient", "finite-difference-agreement", "unbounded-attack"])
def test_nothing_is_clear_without_an_essential_part(without: str) -> None:
    everything = recorded("pgd")
    assert not observations(everything).missing
    seen = observations(recorded("pgd", (without,)))
    assert seen.missing
    verdict = judge(seen).verdict
    assert verdict.label == "inconclusive"
    assert "1 left out on request" in verdict.sentence


def test_a_search_is_missed_only_where_it_could_reveal_something() -> None:
    """White-box attacks break all points here, but only six in ten there."""
    assert not observations(recorded("pgd", ("square",))).missing
    left = recorded("noise", ("square",))
    assert any("gradient-free" in reason for reason in observations(left).missing)


def test_no_search_is_missed_where_nothing_is_unbroken() -> None:
    """Every point falls to something, though not to white-box attacks: no search could add one."""
    idle = [dataclasses.replace(one, attempted=0, status="skipped") if one.name == "square" else one
            for one in recorded("noise", ("apgd-margin",)).attacks]  # fmt: skip
    missing = observations(dataclasses.replace(recorded("noise", ("apgd-margin",)), attacks=idle)).missing
    assert missing == ("Essential part left out or failed: white-box attacks on other losses.",)


def test_restarts_on_a_few_points_are_not_the_attacks_on_cross_entropy() -> None:
    """Restarts meet only what another loss broke: without Auto-PGD on the rest, the examples prove nothing."""
    few = recorded("noise", ("apgd-ce",))
    rows = [dataclasses.replace(one, attempted=1) if one.name == "apgd-ce-restarts" else one for one in few.attacks]
    verdict = judge(observations(dataclasses.replace(few, attacks=rows))).verdict
    assert verdict.label == "inconclusive"
    assert "it lacks further white-box attacks on cross-entropy" in " ".join(verdict.reasons)


FAULT = Mechanism("shattered", "The gradient is zero", "high")


@pytest.mark.parametrize(("without", "few"), [(("apgd-margin",), False), ((), True)])
def test_too_few_is_said_of_few_only(without: tuple[str, ...], few: bool) -> None:
    """All points that withstand white-box attacks fall to the repaired gradient, few or many."""
    rows = [*recorded("noise", without).attacks, row("repaired", "repaired")]
    broken_by = [["repaired"]] * (3 if few else HIDDEN) + [["pgd"]] * (POINTS - (3 if few else HIDDEN))
    left_out = {name: ROWS[name].part for name in without}
    verdict = judge(
        observations(Recorded([True] * POINTS, broken_by, rows, traced=(FAULT,), left_out=left_out))
    ).verdict
    assert verdict.label != "masked"
    assert ("too few to prove masking" in " ".join(verdict.reasons)) is few


def test_a_fault_is_not_unconfirmed_where_only_an_attack_is_missing() -> None:
    """Points that another loss broke speak for the fault, though they prove nothing without the restarts."""
    reasons = " ".join(
        judge(observations(recorded("apgd-margin", ("apgd-ce-restarts",), traced=(FAULT,)))).verdict.reasons
    )
    assert "The trace suspects a fault: the gradient is zero" in reasons
    none = " ".join(judge(observations(recorded("pgd", ("zero-gradient",), traced=(FAULT,)))).verdict.reasons)
    assert "The trace suspects a fault that the attacks did not confirm" in none


def test_no_attack_is_missed_where_cross_entropy_left_nothing() -> None:
    """One point withstands the reference attack and falls to another run on cross-entropy: Auto-PGD had none left."""
    rows = [one for one in ROWS.values() if one.part in ("reference", "gradient_free")]
    rows += [row("pgd-coarse", "strong", "", "cross_entropy")]
    broken_by = [["pgd"]] * (POINTS - 1)
    assert not observations(Recorded([True] * POINTS, [*broken_by, ["pgd-coarse"]], rows)).missing
    assert observations(Recorded([True] * POINTS, [*broken_by, []], rows)).missing


def test_an_unfinished_audit_proves_nothing() -> None:
    seen = observations(recorded("noise", broken_off="The model failed."))
    assert judge(seen).verdict.label == "inconclusive"
    assert set(seen.unproven) == {"gradient", "loss"}


@pytest.mark.parametrize("value", [
    row("pgd", "reference", "reference", "cross_entropy", curve=((1, 2), (3, 4)), settings={"steps": 4}),
    ProbeResult("zero-gradient", "", "pass", details={"a": [1, {"b": None}]}, sources=("one", "two")),
])  # fmt: skip
def test_a_document_gives_back_what_was_written(value: Any) -> None:
    assert revived(type(value), {**plain(dataclasses.asdict(value)), "of a later version": 1}) == value


def test_what_no_attack_measured_has_no_accuracy() -> None:
    """Of a black box only challengers ask: nothing is known of its gradients, so neither accuracy nor level."""
    asked = Recorded([True] * POINTS, [["noise"]] * POINTS, [ROWS["noise"]], black_box=True)
    judged = judge(observations(asked))
    assert judged.accuracy["reference"] is None
    assert judged.accuracy["strong_reference"] is None
    assert judged.accuracy["best_known"] is not None
    assert judged.masking["gradient_level"].n == 0


def test_repairs_are_counted_among_the_points_that_were_compared() -> None:
    rows = [*ROWS.values(), row("repaired", "repaired")]
    seen = observations(Recorded([True] * POINTS, [["repaired"]] * POINTS, rows, searched=30))
    assert (seen.repaired, seen.left) == (30, 30)
