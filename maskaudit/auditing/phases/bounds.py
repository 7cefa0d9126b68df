"""Branch and bound on points that nothing broke, where the network is small enough."""

from __future__ import annotations

from torch import Tensor

from maskaudit.attacks.branch_and_bound import effort, searchable
from maskaudit.attacks.interface import AttackSpec, AttackUnavailable
from maskaudit.auditing.state import AuditState

#: Rounds below which a point is not begun with: about one for each class.
FEWEST_ROUNDS = 8


def run(state: AuditState, rows: Tensor) -> None:
    """The search on the points `rows` that are left, or as many of them as the budget has rounds for."""
    for spec in state.attacks("bounds"):
        due = rows[~state.ledger.best_known()[rows]]
        if not spec.settings["rounds"]:
            state.attacker.skip(spec, f"not part of the budget {state.settings.budget}")
        elif not len(due):
            state.attacker.skip(spec, "every point had been broken")
        else:
            _search(state, spec, due)


def _search(state: AuditState, spec: AttackSpec, due: Tensor) -> None:
    attacker, passes, most = state.attacker, state.settings.effort.bound_passes, int(spec.settings["rounds"])
    try:
        network = searchable(state.target, state.ledger.x[due[:1]])
    except AttackUnavailable as reason:
        attacker.skip(spec, str(reason))
        return
    while len(due) and effort(network, len(due), passes) < min(FEWEST_ROUNDS, most):
        due = due[: len(due) // 2]
    if not len(due):
        attacker.skip(spec, "the network is too large for this budget")
        return
    rounds = min(most, effort(network, len(due), passes))
    result = attacker.carry_out(spec, due, spec.name, changes={"rounds": rounds})
    attacker.say_outcome(spec, due, [result])
