"""Quick audits of a linear model, plain or behind something that hides its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.results import AttackRow, AuditReport
from maskaudit.settings import AuditSettings, Listener, ignore_events


class Rounded(nn.Module):
    """Inputs on a coarse grid: no gradient comes back."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 16).round() / 16


def linear(
    eps: float, front: nn.Module | None = None, points: int = 128, on_event: Listener = ignore_events, **settings: Any
) -> AuditReport:
    """A linear model, behind something if wanted, audited quickly on points that it classifies as they are labelled."""
    torch.manual_seed(0)
    x, head = torch.rand(points, 6), nn.Linear(6, 3)
    model = head if front is None else nn.Sequential(front, head)
    left_out = ("transfer", "torchattacks-pgd", "torchattacks-square")
    chosen = AuditSettings(**{"budget": "quick", "ignore": left_out, **settings})
    y = model(x).argmax(1)
    report: AuditReport = api.audit(model, (x, y), eps=eps, settings=chosen, on_event=on_event).report
    return report


def by_name(report: AuditReport) -> dict[str, AttackRow]:
    """The rows of a report by the name of their attack."""
    return {row.name: row for row in report.attacks}
