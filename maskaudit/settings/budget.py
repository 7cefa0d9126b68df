"""How much an audit may spend: the named budgets, their looks, and limits in time or passes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

#: Largest number in a limit.
LARGEST_AMOUNT = 1e15


@dataclass(frozen=True)
class Budget:
    """How much an audit may spend.

    Attributes:
        points: most points that it draws for the verdict, but for `CORRECT_POINTS`; `claim_points` those that it draws
            to judge a claim.
        steps: gradient steps of one Auto-PGD run.
        targets: wrong classes tried by the targeted attack.
        queries: forward passes per point of the score-based search.
        decision_queries: of the decision-based attack.
        noise_draws: random-sign draws per point.
        surrogate_rounds: training rounds of the surrogate.
        probe_points: points that probes measure.
        second_opinion: points that torchattacks attacks.
        curve_points: points of the figure of accuracy against ε.
        bound_rounds: rounds of branch and bound on a point at most; 0 for none.
        bound_passes: multiplications that branch and bound may spend in an audit.
    """

    points: int
    claim_points: int
    steps: int
    targets: int
    queries: int
    decision_queries: int
    noise_draws: int
    surrogate_rounds: int
    probe_points: int
    second_opinion: int
    curve_points: int
    bound_rounds: int
    bound_passes: float


#: Points of the first looks: enough to prove that a third is hidden, and to bound the share where nothing is.
FIRST_LOOKS = (32, 56)
#: How much larger each further look is, at least.
LOOK_GROWTH = 1.4

#: Where fewer points than this are answered rightly, or the loss level alone is open, an audit draws further ones if
#: they may decide, up to so many in all.
CORRECT_POINTS, MOST_DRAWN = 128, 512


def looks_up_to(most: int) -> tuple[int, ...]:
    """Numbers of points up to `most`, multiples of 8."""
    looks = list(FIRST_LOOKS)
    while LOOK_GROWTH * looks[-1] < most:
        looks.append(8 * math.ceil(LOOK_GROWTH * looks[-1] / 8))
    return (*looks, most)


BUDGETS: dict[str, Budget] = {
    "quick": Budget(
        points=128, claim_points=128, steps=25, targets=2, queries=400, decision_queries=400, noise_draws=100,
        surrogate_rounds=2, probe_points=32, second_opinion=4, curve_points=8, bound_rounds=0, bound_passes=0,
    ),
    "standard": Budget(
        points=800, claim_points=200, steps=50, targets=4, queries=1500, decision_queries=1000, noise_draws=300,
        surrogate_rounds=2, probe_points=32, second_opinion=8, curve_points=16, bound_rounds=256, bound_passes=4e10,
    ),
    "thorough": Budget(
        points=1600, claim_points=400, steps=100, targets=9, queries=5000, decision_queries=4000, noise_draws=1000,
        surrogate_rounds=4, probe_points=64, second_opinion=32, curve_points=32, bound_rounds=512, bound_passes=1e12,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Allowance:
    """A limit in the user's unit: seconds, or passes (forwards and backwards, in points); `text` as it was given."""

    text: str
    seconds: float | None = None
    passes: float | None = None


_UNITS = {"s": 1, "m": 60, "h": 3600}
_AMOUNT = re.compile(r"(\d{1,12}(?:\.\d{1,6})?(?:e\d{1,2})?)([smh]?)")


def allowance(budget: str) -> Allowance | None:
    """The limit that a budget such as `90s`, `2m`, `1.5h` or `1e6` names; None for a text that is none."""
    found = _AMOUNT.fullmatch(budget.strip())
    amount = float(found[1]) if found else 0.0
    if not found or not 0 < amount <= LARGEST_AMOUNT:
        return None
    unit = _UNITS.get(found[2])
    return Allowance(budget, passes=amount) if unit is None else Allowance(budget, seconds=unit * amount)
