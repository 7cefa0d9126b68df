"""Shared perturbations: what broke some points is tried on those that nothing broke."""

from __future__ import annotations

import torch
from torch import Tensor

from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.universal import keys
from maskaudit.auditing.ledger import ALL_BROKEN
from maskaudit.auditing.state import AuditState


def run(state: AuditState, rows: Tensor) -> None:
    """Try perturbations on the points `rows` that nothing broke, those hidden from the gradients first."""
    for spec in state.attacks("shared"):
        _attack(state, spec, rows)


def _attack(state: AuditState, spec: AttackSpec, rows: Tensor) -> None:
    ledger, attacker = state.ledger, state.attacker
    best = ledger.best_known()
    evading = rows[~best[rows]]
    hidden = best & ~ledger.strong()
    sources = (hidden if bool(hidden.any()) else best).nonzero().squeeze(1)
    if not len(evading) or not len(sources):
        attacker.skip(spec, ALL_BROKEN if len(sources) else "no point was broken")
        return
    found = torch.stack([ledger.examples_of(row)[-1][1] for row in sources.tolist()])
    tried = keys(ledger.x[sources], found, state.threat, int(spec.settings["most"]))
    result = attacker.carry_out(spec, evading, spec.name, settings=lambda: {"perturbations": tried})
    attacker.say_outcome(spec, evading, [result])
