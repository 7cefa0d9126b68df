"""Which points every challenger attacks, and how much it may spend on each.

Challengers carry the claim that nothing is hidden, and on a robust model they cost most of an audit. Three facts spare
passes without weakening the claim:

* On points that white-box attacks broke they can hide nothing; a sample of those shows whether the search finds what is
  there to be found (the power check), and how many queries it takes.
* Where white-box attacks broke nearly every point, no challenger can change the verdict.
* Where neither probes nor trace suspect anything, the search as a whole is worth on the unbroken points what it was
  worth on the sample. There every challenger begins with a quarter of its budget. If half of that sufficed, together,
  for nearly all of the sample, the quarter is enough; if not, what they missed teaches on whole budgets how much more
  each needs. Where unbroken points fall to that, the whole budget is spent on the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from maskaudit.attacks.interface import AttackSpec
from maskaudit.auditing.attacker import Attacker, Booked
from maskaudit.auditing.state import AuditState
from maskaudit.verdict.limits import CLEAR_LIMIT, MIN_KNOWN, RECAPTURE_POINTS
from maskaudit.verdict.power import Power, check_power
from maskaudit.verdict.rules import error_level
from maskaudit.verdict.statistics import upper_bound

#: Known-broken points that suffice where challengers cannot change the verdict; a share of 0.69 passes the power check.
SETTLED_POINTS = 32

#: The share of the known points that challengers can break which together they must have broken within some queries …
QUANTILE = 0.95
#: … times this, since unbroken points are harder than those that fell.
RESERVE = 2
#: No challenger gets a smaller share of its budget than this: what is cheap on known points may be expensive on
#: hidden ones.
FLOOR = 0.25

#: Points, as a share of the correctly classified ones, that challengers may break by the way though white-box attacks
#: did not; beyond that something is hidden, and they get their whole budgets.
BY_THE_WAY = 0.01


def run(state: AuditState, rows: Tensor) -> None:
    """The challengers on points `rows` of the ledger: budgets are learnt first, then each searches."""
    if state.challenge is None:
        state.challenge = Challenge(state.attacker, state.suspected, error_level(len(state.looks)))
    specs = state.attacks("challengers")
    state.challenge.learn(specs, rows)
    for spec in specs:
        state.challenge.run(spec, rows)


class Challenge:
    """The challengers of one audit.

    Args:
        attacker: runs and books attacks.
        suspected: whether probes or trace found a fault so far; nothing is spared on such a model.
        alpha: one-sided error level of one comparison at one look, as the judge uses it.
    """

    def __init__(self, attacker: Attacker, suspected: Callable[[], bool], alpha: float) -> None:
        self.attacker, self.suspected, self.alpha = attacker, suspected, alpha
        self._lessons: dict[str, list[Booked | str]] = {}
        self._budgets: dict[str, int] = {}

    def learn(self, specs: Sequence[AttackSpec], rows: Tensor) -> None:
        """Before the first challenger of a look: budgets for its points `rows`, where the known ones can teach them."""
        unbroken = bool((~self.attacker.ledger.strong()[rows]).any())
        taught = [spec for spec in specs if self._can_learn(spec) and (unbroken or spec.kind != "transfer")]
        whole = {spec.name: int(spec.settings[spec.effort]) for spec in taught}
        self._budgets, self._lessons = whole, {spec.name: [] for spec in taught}
        sample = self._sample(rows)
        if not taught or not len(sample):
            return
        teaches = int(self._tried_before(rows).sum()) + len(sample) >= MIN_KNOWN
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

    def run(self, spec: AttackSpec, rows: Tensor) -> None:
        """Run one challenger on the points it is for among `rows` of the ledger, those of this look."""
        ledger = self.attacker.ledger
        unbroken = rows[~ledger.strong()[rows]]
        if spec.kind == "transfer" and not len(unbroken):
            self.attacker.skip(spec, "white-box attacks broke every point, so no surrogate was trained")
            return
        due = torch.cat([unbroken, self._sample(rows)]).sort().values
        if not len(due):
            return
        if spec.name not in self._lessons:
            self.attacker.run(spec, due)
            return
        results = self._lessons[spec.name]
        if len(unbroken):
            results += self._on_unbroken(spec, unbroken)
        self.attacker.say_outcome(spec, due, results)

    def _on_unbroken(self, spec: AttackSpec, unbroken: Tensor) -> list[Booked | str]:
        """The search on what is unbroken: on its learnt budget, and where something is hidden on the whole."""
        attacker, entry = self.attacker, self.attacker.ledger.entry(spec)
        whole = int(spec.settings[spec.effort])
        budget = whole if self._something_hidden() else self._budgets[spec.name]
        results = [attacker.carry_out(spec, unbroken, f"{spec.name} standing", changes={spec.effort: budget})]
        left = unbroken[~entry.broken[unbroken]]
        if budget < whole and self._something_hidden() and len(left):
            budget = whole
            results.append(attacker.carry_out(spec, left, f"{spec.name} again"))
        entry.settings[f"{spec.effort}_on_unbroken_points"] = budget
        return results

    def tried(self) -> Tensor:
        """The points that white-box attacks broke and every search has attacked, bool (P,).

        What lives on other attacks' work, or is left out of looks in which no point withstands, may have met fewer.
        """
        ledger = self.attacker.ledger
        tried = ledger.strong()
        for entry in ledger.entries.values():
            spec = entry.spec
            searches = spec.phase == "challengers" and spec.kind != "transfer"
            if searches and entry.status == "ran":
                tried &= entry.attempted
        return tried

    def _tried_before(self, rows: Tensor) -> Tensor:
        """`tried` for the points of the looks before that of `rows`."""
        return self.tried()[: int(rows[0])]

    def recaptured(self, known: Tensor) -> Power:
        """The power that the search shows on known points, a mask of the first points of the ledger, bool (≤ P,)."""
        found = known & self.attacker.ledger.challengers()[: len(known)]
        return check_power("recapture", int(found.sum()), int(known.sum()))

    def _wanted(self, earlier: Tensor) -> int:
        """How many known points the search should meet, given those (bool) that it met in earlier looks."""
        missed = bool(earlier.any()) and not self.recaptured(earlier).passed
        return SETTLED_POINTS if self._settled() and not missed else RECAPTURE_POINTS

    def _settled(self) -> bool:
        """Whether the gradient level is bounded even if every unbroken point were a hidden one."""
        ledger = self.attacker.ledger
        correct = int(ledger.correct.sum())
        unbroken = int((ledger.correct & ~ledger.strong()).sum())
        return upper_bound(unbroken, correct, self.alpha) < CLEAR_LIMIT

    def _sample(self, rows: Tensor) -> Tensor:
        """The points of this look, broken by white-box attacks, that the search is tried on."""
        earlier = self._tried_before(rows)
        return rows[self.attacker.ledger.strong()[rows]][: max(0, self._wanted(earlier) - int(earlier.sum()))]

    def _something_hidden(self) -> bool:
        """Whether challengers broke more points that withstand white-box attacks than fall by the way."""
        ledger = self.attacker.ledger
        hidden = ledger.correct & ledger.challengers() & ~ledger.strong()
        return int(hidden.sum()) > BY_THE_WAY * int(ledger.correct.sum())

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
        known = ledger.strong()
        for entry in ran:
            if entry.spec.kind != "transfer":  # it has no surrogate in looks where no point withstands
                known &= entry.attempted
        return {
            row: {entry.spec.name: entry.first_success.get(row, math.inf) for entry in ran}
            for row in known.nonzero().squeeze(1).tolist()
        }


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
