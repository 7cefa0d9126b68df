"""How much of an audit is left is told in time, and told about right."""

from __future__ import annotations

import pytest

from maskaudit import api
from maskaudit.auditing import document
from maskaudit.auditing.forecast import Forecast
from maskaudit.auditing.state import AuditState
from maskaudit.loading import LoadedModel
from maskaudit.settings import AuditEvent, AuditSettings


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["standard", "pgd_trained"])
def test_the_passes_left_are_told_within_a_factor_of_two(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, int]] = []

    class Recorded(Forecast):
        def seconds(self, state: AuditState) -> float | None:
            seconds = super().seconds(state)
            if seconds is not None:
                told.append((sum(self.passes(state)), state.target.ledger.forwards + state.target.ledger.backwards))
            return seconds

    monkeypatch.setattr(document, "Forecast", Recorded)
    model: LoadedModel = request.getfixturevalue(name)
    report = api.audit(model.module, settings=AuditSettings(budget="quick")).report.to_dict()
    total = report["timing"]["forwards"] + report["timing"]["backwards"]
    early = [(left, total - spent) for left, spent in told if spent <= 0.75 * total]
    assert early
    assert sum(true / 2 <= left <= 2 * true for left, true in early) >= len(early) / 2, early


@pytest.mark.heavy
def test_nothing_is_told_before_an_attack_has_run(standard: LoadedModel) -> None:
    events: list[AuditEvent] = []
    settings = AuditSettings(budget="quick", samples=32)
    api.audit(standard.module, settings=settings, on_event=events.append)
    first = next(i for i, event in enumerate(events) if event.step == "pgd" and event.finished)
    assert all(event.left is None for event in events[:first])
    assert all(event.left is not None and event.left >= 0 for event in events[first:])
