"""Attacks through the repaired gradient, and adaptive attacks where probes or trace hint at a fault."""

from __future__ import annotations

from torch import Tensor

from maskaudit.auditing.state import AuditState


def run(state: AuditState, rows: Tensor) -> None:
    """The stages of the plan that need no examples of others, each on the points that are still open to it."""
    if len(rows) and state.adaptive is not None and state.attacks("repaired"):
        state.adaptive.run(rows)


def from_candidates(state: AuditState, rows: Tensor) -> None:
    """The stages that start from what the challengers came nearest with."""
    if len(rows) and state.adaptive is not None and state.attacks("repaired"):
        state.adaptive.run(rows, late=True)
