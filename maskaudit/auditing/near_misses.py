"""The last attacks of a look: own gradients and random search once more, where points stand most narrowly.

Auto-PGD from a random start gives up on points that it would break from close by, and so does random search, with a
fraction of the queries. So every attack's best candidates are kept for the points that stand, and those that came
nearest to breaking theirs are attacked again from them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from maskaudit.attacks.interface import AttackSpec
from maskaudit.auditing.attacker import Attacker

#: Share of the standing points, and how many at least, that count as near misses.
NEAR_SHARE, NEAR_LEAST = 0.1, 4


def attack_near_misses(attacker: Attacker, specs: Sequence[AttackSpec], rows: Tensor) -> None:
    """Run `specs`, attacks that take `starts`, one after the other on the near misses among `rows` of the ledger."""
    ledger = attacker.ledger
    near = attacker.nearest(rows[~ledger.best_known()[rows]], NEAR_SHARE, NEAR_LEAST)
    for spec in specs:
        due = near[~ledger.best_known()[near]]
        if len(due):
            starts = {"starts": attacker.candidates(due)}
            attacker.say_outcome(spec, due, [attacker.carry_out(spec, due, spec.name, per_point=starts)])
        else:
            attacker.skip(spec, "no point was left standing")
