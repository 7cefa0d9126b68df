"""White-box attacks: the usual reference R₀, and everything else that follows the gradient of the model (G*).

The reference and FGSM meet every point, since probes compare them. Of the others each meets the points whose fate it
can still change: attacks on cross-entropy those that cross-entropy has not broken, other losses those that nothing has.
"""

from __future__ import annotations

from torch import Tensor

from maskaudit.attacks.interface import AttackSpec
from maskaudit.auditing.state import AuditState


def run(state: AuditState, rows: Tensor) -> None:
    """Every white-box attack on its points."""
    for spec in state.attacks("white_box"):
        attack(state, spec, rows)
    if "loss" in state.undecided:
        state.matched = len(state.ledger)


def attack(state: AuditState, spec: AttackSpec, rows: Tensor) -> None:
    """One attack on those of the points `rows` that it is for.

    On a model of which nothing is suspected it may give up early on points beyond its reach.
    """
    due = rows[_wanted(state, spec)[rows]]
    if len(due):
        spares = not (state.target.random or state.suspected())
        state.attacker.run(spec, due, spec.sparing if spares else {})
    elif len(rows) and not spec.second_chance:
        state.attacker.skip(spec)


def _wanted(state: AuditState, spec: AttackSpec) -> Tensor:
    """Points (P,), bool, that an attack is for: a second chance only where another loss got through alone."""
    ledger = state.ledger
    if spec.everywhere:
        return ledger.correct
    if spec.second_chance:
        compared = "loss" in state.undecided
        return ledger.strong() & ~ledger.cross_entropy() & compared
    return ~(ledger.cross_entropy() if spec.family == "cross_entropy" else ledger.strong())
