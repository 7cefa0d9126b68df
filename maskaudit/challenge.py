"""Which points every challenger attacks, and how much it may spend on each.

Challengers carry the claim that nothing is hidden, and on a robust model they cost most of an audit. Three facts spare
passes without weakening the claim:

* On points that own gradients broke they can hide nothing; a sample of those shows whether the search finds what is
  there to be found (the power check), and how many queries it takes.
* Where own gradients left next to nothing standing, no challenger can change the verdict.
* Where neither probes nor trace suspect anything, a challenger is worth on the standing points what it was worth on the
  sample. It gets twice the queries within which it broke nearly all of the sample that cheaper challengers had missed,
  and never less than a quarter of its budget. Where that breaks standing points, it is run again with the whole budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from maskaudit.attacker import Attacker, Booked
from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.universal import keys
from maskaudit.verdict.power import MIN_KNOWN, RECAPTURE_POINTS, Power, check_power
from maskaudit.verdict.rules import CLEAR_LIMIT
from maskaudit.verdict.statistics import upper_bound

#: Known-broken points that suffice where challengers cannot change the verdict; a share of 0.69 passes the power check.
SETTLED_POINTS = 32

#: The share of its successes on known points that a challenger must have had within the queries it is given …
QUANTILE = 0.95
#: … times this, since points that stand are harder than those that fell.
RESERVE = 2
#: No challenger gets a smaller share of its budget than this: what is cheap on known points may be dear on hidden ones.
FLOOR = 0.25

#: Points, as a share of the correctly classified ones, that a search on a learnt budget may break by the way; beyond
#: that something is hidden, and it gets its whole budget.
BY_THE_WAY = 0.01


class Challenge:
    """The challengers of one audit.

    Args:
        attacker: runs and books attacks.
        suspected: whether probes or trace found a fault so far; nothing is spared on such a model.
        alpha: one-sided error level of one comparison at one look, as the judge uses it.
    """

    def __init__(self, attacker: Attacker, suspected: Callable[[], bool], alpha: float) -> None:
        self.attacker, self.suspected, self.alpha = attacker, suspected, alpha

    def run(self, spec: AttackSpec, rows: Tensor) -> None:
        """Run one challenger on what is its business among points `rows` of the ledger, those of this look."""
        ledger = self.attacker.ledger
        if spec.kind == "universal":
            self._share(spec, rows)
            return
        strong = ledger.strong()
        standing, known = rows[~strong[rows]], rows[strong[rows]]
        if spec.kind == "transfer" and not len(standing):
            if not ledger.entry(spec).attempted.any():
                self.attacker.skip(spec, "own gradients left no point standing, so no surrogate was trained")
            return
        earlier = self.tried()[: int(rows[0])]
        sample = known[: max(0, self._wanted(earlier) - int(earlier.sum()))]
        due = torch.cat([standing, sample]).sort().values
        if not len(due):
            return
        if not self._may_learn(spec):
            self.attacker.run(spec, due)
            return
        results = [self.attacker.carry_out(spec, sample, None, spec.name)] if len(sample) else []
        if len(standing):
            results += self._on_standing(spec, standing)
        self.attacker.say_outcome(spec, due, results)

    def _on_standing(self, spec: AttackSpec, standing: Tensor) -> list[Booked | str]:
        """The search on what stands, on the budget that the sample taught and where that breaks points on the whole."""
        attacker, entry = self.attacker, self.attacker.ledger.entry(spec)
        whole = int(spec.settings[spec.effort])
        budget = self._learnt(spec, whole)
        entry.settings[f"{spec.effort}_on_standing_points"] = budget
        results = [attacker.carry_out(spec, standing, {**spec.settings, spec.effort: budget}, f"{spec.name} standing")]
        left = standing[~entry.broken[standing]]
        something_hidden = len(standing) - len(left) > BY_THE_WAY * int(attacker.ledger.correct.sum())
        if budget < whole and something_hidden and len(left):
            entry.settings[f"{spec.effort}_on_standing_points"] = whole
            results.append(attacker.carry_out(spec, left, spec.settings, f"{spec.name} again"))
        return results

    def _share(self, spec: AttackSpec, rows: Tensor) -> None:
        """What broke points is tried on those that nothing broke: what was hidden from own gradients first."""
        ledger, attacker = self.attacker.ledger, self.attacker
        best = ledger.best_known()
        standing = rows[~best[rows]]
        hidden = best & ~ledger.strong()
        sources = (hidden if bool(hidden.any()) else best).nonzero().squeeze(1)
        if not len(standing) or not len(sources):
            if not ledger.entry(spec).attempted.any():
                attacker.skip(spec, "no point is left standing" if len(sources) else "no point was broken")
            return
        found = torch.stack([ledger.examples_of(row)[-1][1] for row in sources.tolist()])
        tried = keys(ledger.x[sources], found, attacker.threat, int(spec.settings["most"]))
        attacker.say_outcome(spec, standing, [attacker.carry_out(spec, standing, {"perturbations": tried}, spec.name)])

    def tried(self) -> Tensor:
        """The points that own gradients broke and every search has attacked, bool (P,).

        What lives on other attacks' work, or is left out of looks in which nothing stands, may have met fewer.
        """
        ledger = self.attacker.ledger
        tried = ledger.strong()
        for entry in ledger.entries.values():
            searches = entry.spec.role == "challenger" and entry.spec.kind not in ("universal", "transfer")
            if searches and entry.status == "ran":
                tried &= entry.attempted
        return tried

    def recaptured(self, known: Tensor) -> Power:
        """The power that the search shows on known points, a mask of the first points of the ledger, bool (≤ P,)."""
        found = known & self.attacker.ledger.challengers()[: len(known)]
        return check_power("recapture", int(found.sum()), int(known.sum()))

    def _wanted(self, earlier: Tensor) -> int:
        """How many known points the search should meet, given those (bool) that it met in earlier looks."""
        missed = bool(earlier.any()) and not self.recaptured(earlier).passed
        return SETTLED_POINTS if self._settled() and not missed else RECAPTURE_POINTS

    def _settled(self) -> bool:
        """Whether the gradient level is bounded even if every standing point were a hidden one."""
        ledger = self.attacker.ledger
        correct = int(ledger.correct.sum())
        standing = int((ledger.correct & ~ledger.strong()).sum())
        return upper_bound(standing, correct, self.alpha) < CLEAR_LIMIT

    def _may_learn(self, spec: AttackSpec) -> bool:
        """Whether the sample can teach a budget: a search that stops at its first success, on an unsuspected model."""
        return bool(spec.effort) and self.attacker.target.stop_early and not self.suspected()

    def _learnt(self, spec: AttackSpec, whole: int) -> int:
        """The budget for a standing point, from what the search took for the points of the sample."""
        ledger = self.attacker.ledger
        entry, strong = ledger.entry(spec), ledger.strong()
        if int((strong & entry.attempted).sum()) < MIN_KNOWN:
            return whole
        cheaper = torch.zeros_like(strong)
        for other in ledger.entries.values():
            if other is entry:
                break
            if other.spec.role == "challenger":
                cheaper |= other.broken
        marginal = (strong & entry.broken & ~cheaper).nonzero().squeeze(1).tolist()
        took = sorted(entry.first_success[row] for row in marginal)
        needed = RESERVE * took[math.ceil(QUANTILE * len(took)) - 1] if took else 0
        return min(whole, max(math.ceil(FLOOR * whole), needed))
