"""Which points every challenger attacks, and how much it may spend on each.

Challengers carry the claim that nothing is hidden, and on a robust model they cost most of an audit. Four facts spare
passes without weakening the claim:

* A point that anything has broken is hidden or it is not: no further challenger can change that. So each searches only
  what the ones before it left, and once their finds prove masking none goes on.
* On points that white-box attacks broke they can hide nothing; a sample of those shows whether the search finds what is
  there to be found (the power check), and how many queries it takes.
* Where white-box attacks broke nearly every point, no challenger can change the verdict, and none runs
  (`maskaudit.auditing.runner`).
* Where neither probes nor trace suspect anything, the search as a whole is worth on the unbroken points what it was
  worth on the sample. There every challenger begins with a quarter of its budget. If half of that sufficed, together,
  for nearly all of the sample, the quarter is enough; if not, what they missed teaches on whole budgets how much more
  each needs. Where that breaks unbroken points, the whole budget is spent on the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from maskaudit.attacks.interface import AttackSpec
from maskaudit.auditing.attacker import Attacker, Booked
from maskaudit.verdict.limits import MIN_KNOWN, RECAPTURE_POINTS
from maskaudit.verdict.power import Power, check_power

#: Known-broken points that the search meets first; a share of 0.69 passes the power check.
FIRST_KNOWN = 32

#: The share of the known points that challengers can break which together they must have broken within some queries …
QUANTILE = 0.95
#: … times this, since unbroken points are harder than those that were broken.
RESERVE = 2
#: No challenger gets a smaller share of its budget than this: what is cheap on known points may be expensive on
#: hidden ones.
FLOOR = 0.25

#: Points, as a share of the correctly classified ones, that challengers may break incidentally though white-box attacks
#: did not, besides a single one; beyond that something is hidden, and they get their whole budgets.
BY_THE_WAY = 0.01


class Challenge:
    """The challengers of one audit.

    Args:
        attacker: runs and books attacks.
        suspected: whether probes or trace found a fault so far; no budget is shortened on such a model.
    """

    def __init__(self, attacker: Attacker, suspected: Callable[[], bool]) -> None:
        self.attacker, self.suspected = attacker, suspected
        self._lessons: dict[str, list[Booked | str]] = {}
        self._budgets: dict[str, int] = {}
        self._known: list[int] = []

    def learn(self, specs: Sequence[AttackSpec], rows: Tensor) -> None:
        """Before the first challenger of a look: budgets for its points `rows`, where the known ones can teach them."""
        unbroken = bool((~self.attacker.ledger.strong()[rows]).any())
        taught = [spec for spec in specs if self._can_learn(spec) and (unbroken or "surrogates" not in spec.shared)]
        whole = {spec.name: int(spec.settings[spec.effort]) for spec in taught}
        self._budgets, self._lessons = whole, {spec.name: [] for spec in taught}
        if not taught:
            return
        sample = self._sample(rows)
        teaches = len(self._known) >= MIN_KNOWN
        if not len(sample):
            self._budgets = whole | (learnt_budgets(list(self._took(taught).values()), whole) if teaches else {})
            return
        self._study(taught, sample, {name: math.ceil(FLOOR * whole[name]) for name in whole} if teaches else whole, "")
        if not teaches:
            return
        took = self._took(taught)
        enough = _first_guess(whole)
        missed = {row for row, first in took.items() if _missed(first, enough)}
        if len(missed) > _spare(len(took)):
            self._study(taught, sample[[row in missed for row in sample.tolist()]], whole, " further")
            took = self._took(taught)
        self._budgets = whole | learnt_budgets(list(took.values()), whole)

    def search(self, spec: AttackSpec, rows: Tensor) -> None:
        """Run one challenger on what is unbroken among `rows` of the ledger, the points that it has not met before."""
        unbroken = rows[~self.attacker.ledger.best_known()[rows]]
        results = self._lessons.get(spec.name, [])
        if not len(unbroken) and not results:
            self.attacker.skip(spec)
            return
        if len(unbroken):
            results = [*results, *self._on_unbroken(spec, unbroken)]
        known = [row for row in self._known if spec.name in self._lessons and row >= int(rows[0])]
        due = torch.cat([unbroken, torch.tensor(known, dtype=torch.int64)])
        self.attacker.say_outcome(spec, due, results)

    def recapture(self, specs: Sequence[AttackSpec], rows: Tensor) -> None:
        """Show on points that white-box attacks broke whether the search finds them, where it has not learnt on them.

        Each challenger meets those that the ones before it missed.
        """
        if any(self._can_learn(spec) for spec in specs):
            return
        sample = self._sample(rows)
        for spec in specs:
            missed = sample[~self.attacker.ledger.challengers()[sample]]
            if len(missed) and ("surrogates" not in spec.shared or self.attacker.surrogates):
                result = self.attacker.carry_out(spec, missed, f"{spec.name} on known points")
                self.attacker.say_outcome(spec, missed, [result])

    def _on_unbroken(self, spec: AttackSpec, unbroken: Tensor) -> list[Booked | str]:
        """The search on what is unbroken: on its learnt budget, and where something is hidden on the whole."""
        attacker, entry = self.attacker, self.attacker.ledger.entry(spec)
        if spec.name not in self._budgets:
            return [attacker.carry_out(spec, unbroken, spec.name)]
        whole = int(spec.settings[spec.effort])
        budget = whole if self._something_hidden() else self._budgets[spec.name]
        results = [attacker.carry_out(spec, unbroken, f"{spec.name} unbroken", changes={spec.effort: budget})]
        left = unbroken[~entry.broken[unbroken]]
        if budget < whole and self._something_hidden() and len(left):
            budget = whole
            results.append(attacker.carry_out(spec, left, f"{spec.name} again"))
        entry.settings[f"{spec.effort}_on_unbroken_points"] = budget
        return results

    def tried(self) -> Tensor:
        """The points that white-box attacks broke and that the whole search was shown, bool (P,)."""
        known = torch.zeros(len(self.attacker.ledger), dtype=torch.bool)
        known[self._known] = True
        return known

    def recaptured(self, known: Tensor) -> Power:
        """The power that the search shows on known points, a mask of all points of the ledger, bool (P,)."""
        found = known & self.attacker.ledger.challengers()
        return check_power("recapture", int(found.sum()), int(known.sum()))

    def _wanted(self) -> int:
        """How many known points the search should meet: more than at first where it missed too many of these."""
        return FIRST_KNOWN if not self._known or self.recaptured(self.tried()).passed else RECAPTURE_POINTS

    def _sample(self, rows: Tensor) -> Tensor:
        """The points among `rows`, broken by white-box attacks, that the search is shown next."""
        known = rows[self.attacker.ledger.strong()[rows]]
        chosen = known[: max(0, self._wanted() - len(self._known))]
        self._known += chosen.tolist()
        return chosen

    def _something_hidden(self) -> bool:
        """Whether challengers broke more points that withstand white-box attacks than may be broken incidentally."""
        ledger = self.attacker.ledger
        hidden = ledger.correct & ledger.challengers() & ~ledger.strong()
        return int(hidden.sum()) - 1 > BY_THE_WAY * int(ledger.correct.sum())

    def _can_learn(self, spec: AttackSpec) -> bool:
        """Whether the sample can teach a budget: a search that stops at its first success, on an unsuspected model."""
        return bool(spec.effort) and self.attacker.target.stop_early and not self.suspected()

    def _study(self, specs: Sequence[AttackSpec], rows: Tensor, budgets: Mapping[str, int], stream: str) -> None:
        """Every search on known points, each with its budget."""
        for spec in specs:
            budget = budgets[spec.name]
            result = self.attacker.carry_out(spec, rows, spec.name + stream, changes={spec.effort: budget})
            self._lessons[spec.name].append(result)
            self.attacker.ledger.entry(spec).settings[f"{spec.effort}_on_known_points"] = budget

    def _took(self, specs: Sequence[AttackSpec]) -> dict[int, dict[str, float]]:
        """For each known point, a row of the ledger, the queries at the first success of every search that ran."""
        ledger = self.attacker.ledger
        ran = [ledger.entry(spec) for spec in specs if ledger.entry(spec).status == "ran"]
        return {row: {entry.spec.name: entry.first_success.get(row, math.inf) for entry in ran} for row in self._known}


def learnt_budgets(took: Sequence[Mapping[str, float]], whole: Mapping[str, int]) -> dict[str, int]:
    """What each search may spend on an unbroken point, by what all of them took for the same known points.

    Beginning with `FLOOR / RESERVE` of its budget for each, the search that buys most points per query is extended
    until `QUANTILE` of what the searches broke lies within reach of one of them. Each gets `RESERVE` times that.

    Args:
        took: for each known point, per search the queries at its first success, infinite where it had none.
        whole: per search its whole budget.
    """
    spent = _first_guess(whole)
    broken = [point for point in took if min(point.values(), default=math.inf) < math.inf]
    while True:
        missed = [point for point in broken if _missed(point, spent)]
        if len(missed) <= _spare(len(broken)):
            return {name: min(whole[name], math.ceil(RESERVE * spent[name])) for name in whole}
        offers = {
            (name, first): sum(other[name] <= first for other in missed) / (first - spent[name])
            for point in missed
            for name, first in point.items()
            if first < math.inf
        }
        name, first = max(offers, key=offers.__getitem__)
        spent[name] = first


def _first_guess(whole: Mapping[str, int]) -> dict[str, float]:
    """What each search is expected to need: `RESERVE` times that is its smallest budget."""
    return {name: FLOOR / RESERVE * budget for name, budget in whole.items()}


def _missed(point: Mapping[str, float], spent: Mapping[str, float]) -> bool:
    """Whether no search would break a known point within what is `spent`, by the queries that each took for it."""
    return all(first > spent[name] for name, first in point.items())


def _spare(known: int) -> int:
    """How many of so many known points may be missed."""
    return math.ceil(round((1 - QUANTILE) * known, 6))
