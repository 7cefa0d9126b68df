"""The attack that may cross the whole box: it cannot fail on a model with an informative gradient."""

from __future__ import annotations

from torch import Tensor

from maskaudit.attacks.registry import UNBOUNDED
from maskaudit.auditing.phases import probes, white_box
from maskaudit.auditing.state import AuditState


def run(state: AuditState, rows: Tensor) -> None:
    """Run it, and let the probes judge it at once: what they find decides how thoroughly the others search."""
    white_box.attack(state, UNBOUNDED, rows)
    probes.compare_attacks(state, rows)
