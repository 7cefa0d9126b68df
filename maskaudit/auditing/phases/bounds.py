"""Branch and bound on points that nothing broke, where the network is small enough: once, when the verdict is decided.

What it finds counts for the best known accuracy and for no level, so that no look needs it.
"""

from __future__ import annotations

from torch import Tensor

from maskaudit.attacks.branch_and_bound import effort, searchable
from maskaudit.attacks.interface import AttackSpec, AttackUnavailable
from maskaudit.auditing.state import AuditState

#: Rounds that a point must have, since a search that has hardly split finds nothing (benchmarks/bab.md).
LEAST_ROUNDS = 16
#: The share of the points left that a budget must have them for; with fewer the search would tell too little.
LEAST_SHARE = 0.25


def run(state: AuditState) -> None:
    """The search on the points that are left, or as many of them as the budget has rounds for."""
    left = (state.ledger.correct & ~state.ledger.best_known()).nonzero().squeeze(1)
    for spec in state.attacks("bounds"):
        if not len(left):
            state.attacker.skip(spec, "every point had been broken")
        elif not spec.settings["rounds"]:
            state.attacker.skip(spec, f"not part of the budget {state.settings.budget}")
        else:
            _search(state, spec, left)


def _search(state: AuditState, spec: AttackSpec, left: Tensor) -> None:
    attacker, passes = state.attacker, state.settings.effort.bound_passes
    try:
        network = searchable(state.target, state.ledger.x[state.ledger.correct])
    except AttackUnavailable as reason:
        attacker.skip(spec, str(reason))
        return
    due = left[: effort(network, LEAST_ROUNDS, passes)]
    if not len(due) or len(due) < LEAST_SHARE * len(left):
        attacker.skip(spec, "the network is too large for this budget")
        return
    rounds = min(int(spec.settings["rounds"]), effort(network, len(due), passes))
    result = attacker.carry_out(spec, due, spec.name, changes={"rounds": rounds})
    attacker.ledger.entry(spec).settings["rounds"] = rounds
    attacker.say_outcome(spec, due, [result])
