"""A budget in time or passes ends the audit where it is spent, with the best verdict that the evidence carries."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskaudit import api
from maskaudit.auditing import budget_limit
from maskaudit.auditing.budget_limit import BudgetSpent, Spending, expected_passes, prices
from maskaudit.errors import UsageError
from maskaudit.results import AuditReport
from maskaudit.settings import BUDGETS, Allowance, AuditEvent, AuditSettings, allowance
from maskaudit.target import PassLedger
from maskaudit.verdict.numerals import duration

from .linear_audits import linear


def audited(budget: str, eps: float = 0.1, workers: int | None = None) -> AuditReport:
    return linear(eps, budget=budget, workers=workers, ignore=("transfer",))


@pytest.mark.parametrize(
    ("text", "seconds", "passes"),
    [("90s", 90, None), ("2m", 120, None), ("1.5h", 5400, None), ("1e6", None, 1e6), ("50000", None, 50_000)],
)
def test_units(text: str, seconds: float | None, passes: float | None) -> None:
    assert allowance(text) == Allowance(text, seconds, passes)
    assert AuditSettings(budget=text).effort is BUDGETS["standard"]


@pytest.mark.parametrize("wrong", ["", "fast", "0", "0s", "-1", "1d", "1e99", "nan", "1 2", "2mm", "9" * 40])
def test_what_is_no_budget_is_refused_in_a_sentence(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"budget must be|budget.*text"):
        AuditSettings(budget=wrong)


@pytest.mark.heavy
def test_what_is_not_decided_when_the_passes_are_spent_is_inconclusive() -> None:
    report = audited("2000")
    assert 0 < report.timing["forwards"] + report.timing["backwards"] <= 2000, "unfinished work is not counted"
    assert audited("standard").timing["forwards"] > 2000
    assert report.verdict.label == "inconclusive"
    assert "The budget of 2000 was spent." in report.verdict.reasons[0]
    assert report.partial is None
    assert report.accuracy["clean"].n == report.settings["samples"]  # type: ignore[union-attr]


def test_probes_that_have_finished_are_kept() -> None:
    report = audited("800")
    assert report.probes
    assert not report.attacks or not report.attacks[0].broken
    assert report.verdict.sentence.count("no probe") == 0


def test_what_is_decided_before_is_told_as_ever() -> None:
    limited, free = audited("1e6", eps=0.9), audited("standard", eps=0.9)
    assert limited.verdict == free.verdict
    assert limited.verdict.label == "clear"
    assert limited.timing["forwards"] == free.timing["forwards"]


def test_a_verdict_that_is_decided_outlasts_a_budget_that_ends_in_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(_state: object) -> None:
        raise BudgetSpent("The budget of 1h was spent.")

    monkeypatch.setattr("maskaudit.auditing.runner.draw_figures", ends)
    assert audited("1h", eps=0.9).verdict.label == "clear"


def test_time_that_is_spent_before_anything_was_measured_is_reported_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="Nothing had been measured yet"):
        audited("0.000001s")


def test_time_ends_an_audit_as_passes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10**6))
    monkeypatch.setattr(budget_limit.time, "perf_counter", lambda: float(next(now)))
    account = Spending(Allowance("3s", seconds=2), PassLedger(), started=0.0)
    account.check()
    account.check()
    with pytest.raises(BudgetSpent, match="The budget of 3s was spent"):
        account.check()


def test_the_price_of_a_pass_and_of_every_budget_is_told_before_the_work() -> None:
    events: list[AuditEvent] = []
    x, model = torch.rand(60, 6), nn.Linear(6, 3)
    settings = AuditSettings(budget="quick", select=("pgd",))
    api.audit(model, (x, model(x).argmax(1)), eps=0.1, settings=settings, on_event=events.append)
    finished = [event for event in events if event.finished]
    assert finished[0].step == "passes"
    assert all(f"({name})" in finished[0].outcome for name in BUDGETS)


def test_what_the_budgets_will_take() -> None:
    costs = [expected_passes(BUDGETS[name]) for name in ("quick", "standard", "thorough")]
    assert costs == sorted(costs)
    assert 60_000 < costs[1] < 180_000, "what was measured on robust networks: benchmarks/verdict-standard.md"
    assert prices(0.001).startswith("1.5 ms each; a robust model takes about ")
    assert [duration(s) for s in (0.42, 42, 420, 42_000)] == ["0.42 s", "42 s", "7 min", "11.7 h"]
