"""White-box attacks: the usual reference R₀, and everything else that follows the gradient of the model (G*)."""

from __future__ import annotations

from torch import Tensor

from maskaudit.attacks.interface import AttackSpec
from maskaudit.auditing.state import AuditState


def run(state: AuditState, rows: Tensor) -> None:
    """Every white-box attack on its points."""
    for spec in state.attacks("white_box"):
        attack(state, spec, rows)


def attack(state: AuditState, spec: AttackSpec, rows: Tensor) -> None:
    """One attack on the points `rows`; a second chance only where another loss got through and cross-entropy did not.

    On a model of which nothing is suspected it may give up early on points beyond its reach.
    """
    ledger = state.ledger
    if spec.second_chance:
        rows = rows[(ledger.strong() & ~ledger.cross_entropy())[rows]]
    if len(rows):
        spares = not (state.target.random or state.suspected())
        state.attacker.run(spec, rows, spec.sparing if spares else {})
