"""A second opinion: attacks of an independent library, on a sample of the points that nothing broke."""

from __future__ import annotations

from torch import Tensor

from maskaudit.auditing.state import AuditState


def run(state: AuditState, rows: Tensor) -> None:
    """Each of them once, at the first look that leaves it points."""
    for spec in state.attacks("second_opinion"):
        due = rows[~state.ledger.best_known()[rows]][: state.settings.effort.second_opinion]
        if len(due):
            state.attacker.run(spec, due)
        else:
            state.attacker.skip(spec)
