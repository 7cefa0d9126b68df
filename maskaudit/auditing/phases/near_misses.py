"""The last attacks of a look: white-box attacks and random search once more, where they failed most narrowly.

Auto-PGD from a random start gives up on points that it would break from close by, and so does random search, with a
fraction of the queries. So every attack's best candidates are kept for the points that nothing broke, and
the points whose candidates came nearest are attacked again from them.
"""

from __future__ import annotations

from torch import Tensor

from maskaudit.auditing.state import AuditState

#: Share of the points that nothing broke, and how many at least, that count as near misses.
NEAR_SHARE, NEAR_LEAST = 0.1, 2


def run(state: AuditState, rows: Tensor) -> None:
    """Attacks that take starts, one after the other, on the near misses among `rows` of the ledger."""
    ledger, attacker = state.ledger, state.attacker
    near = attacker.candidates.nearest(rows[~ledger.best_known()[rows]], NEAR_SHARE, NEAR_LEAST)
    for spec in state.attacks("near_misses"):
        due = near[~ledger.best_known()[near]]
        if len(due):
            starts = {"starts": attacker.candidates.of(due)}
            attacker.say_outcome(spec, due, [attacker.carry_out(spec, due, spec.name, per_point=starts)])
        else:
            attacker.skip(spec)
