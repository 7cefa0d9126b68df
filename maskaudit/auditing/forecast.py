"""How much longer an audit takes: what its remaining parts cost on the points that they will meet.

Costs are passes of the audited model, forwards and backwards; a pass is taken to last as long as those of the second
half of the time so far. A point costs what white-box attacks need to break it, or, where they fail, all that they may
spend and a search on top. Until one of them has run nobody can tell which. The constants were read off audits of the
zoo; `benchmarks/eta.md` shows how far the estimate can be trusted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from torch import Tensor

from maskaudit.attacks.interface import AttackSpec
from maskaudit.auditing.challenge import FLOOR
from maskaudit.auditing.judging import proven
from maskaudit.auditing.state import AuditState
from maskaudit.settings import AuditEvent, allowance
from maskaudit.verdict.levels import bounded, gradient_limit

#: Passes on a point that falls to white-box attacks.
BROKEN = 30
#: Share of its steps that a white-box attack spends on a point that withstands it: some give up sooner, but where the
#: gradient is suspected none does, and restarts come on top.
SPENT, SPENT_SUSPECTED = 0.65, 1.2
#: Passes of the search on a point beyond its smallest budgets: what it has learnt on known points, and near misses.
SEARCH = 1000
#: Share of what white-box attacks may spend that the repaired ones do.
REPAIRED = 0.25
#: Passes of the figures, and of those per point of the curve against ε.
FIGURES, CURVE_POINT = 1000, 140
#: How much longer a pass of the search takes than those before it: its batches shrink.
SEARCH_PRICE = 2.0
#: Seconds that figures and report take beside passes (matplotlib among them), a surrogate's training, and bounds of a
#: point of a small network.
REPORT_TAKES, SURROGATE_TAKES, BOUNDS_TAKE = 3.5, 2.0, 0.3
#: Parameters up to which a network is small in that sense; bounds of larger ones are mostly left out for their price.
SMALL = 100_000


class Forecast:
    """Hears every step of an audit, and says how much is left of it."""

    def __init__(self) -> None:
        self.finished: set[str] = set()
        self.first = self.drawn = self.searched = 0
        self.attacked = False
        self.steps, self.done, self.began = 0, 0, 0.0
        self.search_began: int | None = None
        self.trained = 0.0
        self.spent: list[tuple[float, int]] = [(0.0, 0)]

    def hear(self, event: AuditEvent, state: AuditState) -> None:
        """Take note of a step; a new look begins where there are more points than before."""
        if len(state.ledger) > self.drawn:
            self.first, self.drawn, self.searched = self.drawn, len(state.ledger), state.searched
            self.finished, self.search_began = set(), None
        if event.finished:
            self.finished.add(event.step)
            self.attacked |= event.step in {spec.name for spec in _white_box(state)}
        if event.total:
            self.steps, self.done, self.began = event.total, 0, time.perf_counter()
        self.done += event.finished
        if event.step == "surrogate":
            self.trained += event.seconds
        passes = state.target.ledger.forwards + state.target.ledger.backwards
        self.spent.append((max(0.0, time.perf_counter() - state.started - self.trained), passes))
        if self.search_began is None and state.searched > self.searched:
            self.search_began = passes

    def seconds(self, state: AuditState) -> float | None:
        """Seconds that the audit still takes, by the mean of its steps for a black box; None where nobody can tell."""
        if state.settings.black_box:
            return (
                (time.perf_counter() - self.began) / self.done * max(0, self.steps - self.done) if self.done else None
            )
        now, spent = self.spent[-1]
        if not self.attacked or not spent:
            return None
        half = next(entry for entry in reversed(self.spent) if entry[0] <= now / 2 and entry[1] < spent)
        each, (plain, search) = (now - half[0]) / (spent - half[1]), self.passes(state)
        allowed = allowance(state.settings.budget)
        if allowed is not None and allowed.passes is not None:
            plain = min(plain, max(0.0, allowed.passes - spent))
            search = min(search, max(0.0, allowed.passes - spent) - plain)
        seconds = (plain + SEARCH_PRICE * search) * each + REPORT_TAKES
        if search and not self.trained:
            seconds += SURROGATE_TAKES
        if state.settings.effort.bound_rounds and state.loaded.parameters <= SMALL and not proven(state):
            seconds += BOUNDS_TAKE * int(_unbroken(state).sum())
        if allowed is not None and allowed.seconds is not None:
            seconds = min(seconds, max(0.0, allowed.seconds - (time.perf_counter() - state.started)))
        return seconds

    def passes(self, state: AuditState) -> tuple[float, float]:
        """Passes that the audit still takes, but for the search without gradients, and those of the search."""
        figures = FIGURES + CURVE_POINT * state.settings.effort.curve_points
        if state.decided:
            return figures, 0.0
        correct, unbroken, specs = state.ledger.correct, _unbroken(state), _white_box(state)
        pending = [spec for spec in specs if spec.name not in self.finished]
        met = slice(0, self.first if pending == specs else None)
        share = int(unbroken[met].sum()) / max(1, int(correct[met].sum()))
        new = share * int(correct[self.first :].sum()) if pending == specs else int(unbroken[self.first :].sum())
        left = figures + new * (SPENT_SUSPECTED if state.suspected() else SPENT) * gradient_passes(pending)
        if proven(state):
            return left, 0.0
        unsearched = new + int(unbroken[self.searched : self.first].sum())
        repaired = {spec.name for spec in state.attacks("repaired") if spec.role == "repaired"}
        if state.suspected() and not repaired & self.finished:
            return left + unsearched * REPAIRED * gradient_passes(specs), 0.0  # which mostly settles it
        challengers = state.attacks("challengers")
        least = search_passes(spec for spec in challengers if spec.name not in self.finished)
        search = search_passes(challengers)
        search += SEARCH if search else 0.0
        searched = 0 if self.search_began is None else self.spent[-1][1] - self.search_began
        further = max(0, _expected(state) - len(correct)) * int(correct.sum()) / len(correct)
        each = share * SPENT * gradient_passes(specs) + (1 - share) * BROKEN
        searches = max(unsearched * least, unsearched * search - searched) + further * share * search
        return left + further * each, searches


def gradient_passes(specs: Iterable[AttackSpec]) -> int:
    """Forwards and backwards of gradient attacks on a point that withstands them."""
    return sum(2 * int(spec.settings.get("steps", 1)) * int(spec.settings.get("targets", 1)) for spec in specs)


def search_passes(specs: Iterable[AttackSpec]) -> float:
    """Forwards of searches on their smallest budgets on a point that withstands them."""
    return FLOOR * sum(int(spec.settings[spec.effort]) for spec in specs if spec.effort)


def _expected(state: AuditState) -> int:
    """The number of drawn points at which the verdict falls if nothing more is found."""
    ledger = state.ledger
    share = int(ledger.correct.sum()) / len(ledger)
    limit = gradient_limit(state.probe_results())
    hidden = int((ledger.challengers() & ~ledger.strong()).sum())
    looks = (n for n in state.looks if n >= len(ledger) and bounded(hidden, int(share * n), n, limit))
    return next(looks, state.looks[-1])


def _unbroken(state: AuditState) -> Tensor:
    """Points (N,) bool that white-box attacks left."""
    return state.ledger.correct & ~state.ledger.strong()


def _white_box(state: AuditState) -> list[AttackSpec]:
    return [spec for spec in state.attacks("white_box") if not spec.second_chance]
