"""Challengers are spared most points that own gradients broke, and every figure stays what it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import maskaudit.runner as runner
from maskaudit import api
from maskaudit.probes.interface import AttackOutcome, ProbeContext
from maskaudit.probes.paired import strong_gap
from maskaudit.results import AttackRow, AuditReport
from maskaudit.rng import PointRNG
from maskaudit.settings import AuditSettings
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from maskaudit.verdict.power import RECAPTURE_POINTS

CHALLENGERS = ("noise", "square", "finite-differences", "decision")


def audited(recapture: int, monkeypatch: pytest.MonkeyPatch) -> AuditReport:
    """A linear model of which about half of the points break, audited with a sample of the given size."""
    monkeypatch.setattr(runner, "RECAPTURE_POINTS", recapture)
    torch.manual_seed(0)
    x, model = torch.rand(128, 6), nn.Linear(6, 3)
    settings = AuditSettings(budget="quick", ignore=("transfer", "torchattacks-pgd", "torchattacks-square"))
    report: AuditReport = api.audit(model, (x, model(x).argmax(1)), eps=0.1, settings=settings).report
    return report


def test_challengers_attack_what_stands_and_a_sample_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, spared = audited(10**9, monkeypatch), audited(24, monkeypatch)
    n = whole.settings["samples"]
    rows = [{row.name: row for row in report.attacks} for report in (whole, spared)]
    broken = round(n * (1 - whole.accuracy["strong_reference"].value))  # type: ignore[union-attr]
    assert 24 < broken < n
    for name in CHALLENGERS:
        assert rows[0][name].attempted == n
        assert rows[1][name].attempted == n - broken + 24
        assert rows[1][name].forwards < rows[0][name].forwards
        row = rows[1][name]
        assert row.robust_accuracy == pytest.approx((row.attempted - row.broken) / n), "spared points count as broken"
    assert spared.power["n"] == 24
    assert spared.power["passed"] is whole.power["passed"]
    assert spared.verdict.label == whole.verdict.label
    for figure in ("clean", "reference", "strong_reference", "best_known"):
        assert spared.accuracy[figure] == whole.accuracy[figure]
    assert spared.masking["gradient_level"] == whole.masking["gradient_level"]
    probes = [{p.rule: (p.status, p.value, p.n) for p in report.probes} for report in (whole, spared)]
    for rule in ("gradient-free-gap", "random-beats-gradient"):
        assert probes[0][rule] == probes[1][rule]


def outcome(broken: list[int], attempted: list[int] | None) -> AttackOutcome:
    row = AttackRow(
        name="square", title="", kind="score", role="challenger", robust_accuracy=None, interval=None, broken=0,
        attempted=0, new=0, queries=0, forwards=0, backwards=0, seconds=0.0, status="ran", reason="", settings={},
        sources=(), curve=(),
    )  # fmt: skip
    return AttackOutcome(
        row, torch.tensor(broken).bool(), None if attempted is None else torch.tensor(attempted).bool()
    )


@pytest.mark.parametrize(
    ("broken", "attempted", "raw"),
    [
        ([1, 1, 0, 0, 1, 0, 0, 0], None, 3 - 2),
        (
            [1, 0, 0, 0, 1, 0, 0, 0],
            [1, 1, 0, 0, 1, 1, 1, 1],
            2 + 2 * 0.5 - 2,
        ),  # half of the two tried, so of the spared
    ],
)
def test_the_plain_difference_counts_spared_points_by_their_like(
    broken: list[int], attempted: list[int] | None, raw: float
) -> None:
    tried = outcome(broken, attempted)
    reference = AttackOutcome(
        AttackRow(**{**vars(tried.row), "name": "pgd", "kind": "gradient", "role": "reference"}),
        torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]).bool(),
    )
    strong = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]).bool()

    def model(x: Tensor) -> Tensor:
        return x

    context = ProbeContext(
        Target(model), torch.zeros(8, 2), torch.zeros(8).long(), ThreatModel(), PointRNG.create(0, "", torch.arange(8)),
        {"square": tried, "pgd": reference}, strong,
    )  # fmt: skip
    gap = strong_gap(context, {"square": tried}, "Search")
    assert (gap.count, gap.n) == (1, 8)
    assert gap.details["raw_gap_to_reference"] == pytest.approx(raw / 8)


def test_the_sample_suffices_for_the_power_check() -> None:
    from maskaudit.verdict.power import MIN_KNOWN, check_power

    assert RECAPTURE_POINTS > MIN_KNOWN
    assert check_power("recapture", 40, RECAPTURE_POINTS).passed
    assert not check_power("recapture", 32, RECAPTURE_POINTS).passed
