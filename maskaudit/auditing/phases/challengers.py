"""The challengers: search without the gradient of the model, and the points that show its power."""

from __future__ import annotations

from torch import Tensor

from maskaudit.auditing.challenge import Challenge
from maskaudit.auditing.judging import proven
from maskaudit.auditing.state import AuditState


def run(state: AuditState, rows: Tensor) -> None:
    """The challengers on points `rows` of the ledger until masking is proven; then those that show their power."""
    if state.challenge is None:
        state.challenge = Challenge(state.attacker, state.suspected)
    specs, challenge = state.attacks("challengers"), state.challenge
    challenge.learn(specs, rows)
    for spec in specs:
        challenge.search(spec, rows)
        if proven(state):
            return
    challenge.recapture(specs, rows)
