"""A budget in time or in passes: when it is spent, and what the named budgets will take on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from maskaudit.attacks.registry import battery
from maskaudit.auditing.forecast import gradient_passes, search_passes
from maskaudit.auditing.state import AuditState
from maskaudit.settings import BUDGETS, FIRST_LOOKS, Allowance, Budget, allowance
from maskaudit.target import PassLedger
from maskaudit.verdict.numerals import duration

#: A forward pass with the backward pass that follows it takes about three times as long as the forward pass alone.
PRICE_OF_BOTH = 3.0


class BudgetSpent(BaseException):
    """The budget is spent; the message names it. No handler for errors of attacks, probes or models catches it."""


@dataclass
class Spending:
    """What an audit may still spend.

    Args:
        allowance: the limit; passes are forwards and backwards, in points.
        passes: the account of the audited model.
    """

    allowance: Allowance
    passes: PassLedger
    started: float = field(default_factory=time.perf_counter)

    def check(self) -> None:
        """Raise `BudgetSpent` where nothing is left."""
        limit, spent = self.allowance, self.passes.forwards + self.passes.backwards
        over_time = limit.seconds is not None and time.perf_counter() - self.started >= limit.seconds
        if over_time or (limit.passes is not None and spent >= limit.passes):
            raise BudgetSpent(f"The budget of {limit.text} was spent.")


def limit(state: AuditState) -> None:
    """Have a budget in time or passes end the audit: within an attack where it runs here, else before the next one."""
    allowed = allowance(state.settings.budget) if state.settings.budget not in BUDGETS else None
    if allowed is None:
        return
    spending = Spending(allowed, state.target.ledger)
    state.attacker.afford = spending.check
    if state.settings.workers is None and not state.settings.ray:
        state.target.before_pass = spending.check


def expected_passes(effort: Budget) -> int:
    """About the passes of an audit of a robust network, the most expensive kind, which is decided at the second look.

    Each of its points meets every white-box attack and a search on the smallest budgets.
    """
    specs = battery(effort)
    steps = gradient_passes(spec for spec in specs if spec.phase == "white_box" and not spec.second_chance)
    return round(FIRST_LOOKS[1] * (steps + search_passes(specs)))


def prices(seconds: float) -> str:
    """What each named budget takes where a point's forward pass takes so many seconds."""
    of_a_pass = seconds * PRICE_OF_BOTH / 2
    expected: Mapping[str, str] = {
        name: duration(expected_passes(effort) * of_a_pass) for name, effort in BUDGETS.items()
    }
    named = ", ".join(f"{time_of} ({name})" for name, time_of in expected.items())
    return f"{1000 * of_a_pass:.2g} ms each; a robust model takes about {named}, others a fraction"
