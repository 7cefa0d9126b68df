"""Attacks through the repaired gradient, and adaptive attacks where probes or trace hint at a fault."""

from __future__ import annotations

from torch import Tensor

from maskaudit.auditing.state import AuditState


def run(state: AuditState, rows: Tensor) -> None:
    """The stages of the plan, each on the points that are still open to it."""
    if state.adaptive is not None and state.attacks("repaired"):
        state.adaptive.run(rows)
