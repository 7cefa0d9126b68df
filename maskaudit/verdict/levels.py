"""What the judge sees, and the two levels at which it compares attacks: counts of points. Knows no torch."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from maskaudit.results import Mechanism, ProbeResult, Rate
from maskaudit.verdict.limits import (
    ALPHA,
    CLEAR_LIMIT,
    CLEAR_LIMIT_OF_CORRECT,
    CLEAR_LIMIT_UNSCREENED,
    GROSS_SLACK,
    SCREEN,
    SCREEN_OF_LOSS,
    SLACK,
    SMALL_LOGITS,
)
from maskaudit.verdict.power import NOT_CHECKED, Power
from maskaudit.verdict.statistics import evidence_above, evidence_below, rate, upper_bound_at_any_look

#: The two levels at which attacks are compared.
LevelName = Literal["gradient", "loss"]


@dataclass(frozen=True)
class Observations:
    """What the judge sees; counts of points.

    Attributes:
        drawn: points drawn; `correct`: of these, classified correctly.
        reference, cross_entropy, strong, challengers, best: correct points broken by R₀, CE*, G*, C and anything.
        hidden_by_gradients: broken by C, not by G*, of `searched` points.
        hidden_by_loss: broken by G*, not by CE*, of `matched` points.
        searched: correct points on which C searched wherever it could reveal something; None for all.
        matched: correct points on which CE* had the effort of G*; None for all.
        searched_drawn, matched_drawn: points drawn among which these are all the correct ones; None for all.
        unbroken: of the `searched` points those that withstand G*, which is all that C could reveal; None if not known.
        probes: graded probe results.
        power: the power check.
        traced: mechanisms that the trace of the model located.
        repaired: points broken through the repaired gradient of those that withstand white-box attacks; None if nothing
            was repaired.
        missing: reasons why an essential part did not run; empty when all did.
        without: the names of these parts, for the wording.
        spared: the parts that a proof had made needless, each with the reason that `missing` gives for it.
        unproven: per level, "gradient" or "loss", why points hidden at it prove nothing: attacks that might have broken
            them did not run. A level that is not named is proven by its examples, whatever else is missing.
        attacks_run, attacks_left_out: numbers of attacks, for the wording; `white_box_run` and `cross_entropy_run`: of
            those that ran, the white-box attacks and the ones on cross-entropy among them.
        deselected: number of probes and attacks that the user left out.
        claimed: claimed robust accuracy, if any.
        certified: certified lower bound of robust accuracy, if known.
        caveats: what answers depend on besides the input, as sentences that the verdict repeats.
        black_box: whether the model was only asked.
        unmeasured: the accuracies, "reference", "strong_reference" or "best_known", that no attack measured.
    """

    drawn: int
    correct: int
    reference: int
    cross_entropy: int
    strong: int
    challengers: int
    best: int
    hidden_by_gradients: int
    hidden_by_loss: int
    probes: tuple[ProbeResult, ...] = ()
    power: Power = NOT_CHECKED
    searched: int | None = None
    matched: int | None = None
    searched_drawn: int | None = None
    matched_drawn: int | None = None
    unbroken: int | None = None
    traced: tuple[Mechanism, ...] = ()
    repaired: int | None = None
    missing: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    spared: Mapping[str, str] = field(default_factory=dict)
    unproven: Mapping[str, str] = field(default_factory=dict)
    attacks_run: int = 0
    attacks_left_out: int = 0
    white_box_run: int = 0
    cross_entropy_run: int = 0
    deselected: int = 0
    claimed: float | None = None
    certified: float | None = None
    caveats: tuple[str, ...] = ()
    black_box: bool = False
    unmeasured: frozenset[str] = frozenset()

    @property
    def gradient_points(self) -> int:
        """Correct points that are compared at gradient level."""
        return self.correct if self.searched is None else self.searched

    @property
    def left(self) -> int:
        """Points that withstand G*, of those compared at gradient level where that is known."""
        return self.correct - self.strong if self.unbroken is None else self.unbroken

    @property
    def loss_points(self) -> int:
        """Correct points that are compared at loss level."""
        return self.correct if self.matched is None else self.matched


#: Error level of one comparison, at all looks together: the two levels share `ALPHA`.
LEVEL_ALPHA = ALPHA / 2


def bounded(hidden: int, correct: int, drawn: int, limit: float) -> bool:
    """Whether hidden points are few by the counts so far, at an error of `LEVEL_ALPHA` over all looks.

    That is, below `limit` of those drawn, and below `CLEAR_LIMIT_OF_CORRECT` of the correct ones.
    """
    return below(hidden, drawn, limit) and below(hidden, correct, CLEAR_LIMIT_OF_CORRECT)


def below(hidden: int, n: int, limit: float) -> bool:
    """Whether the hidden share of `n` points is below `limit`, at an error of `LEVEL_ALPHA` over all looks."""
    return evidence_below(hidden, n, limit) >= -math.log(LEVEL_ALPHA)


def exceeds(hidden: int, n: int, limit: float) -> bool:
    """Whether it is above `limit`, at the same error."""
    return evidence_above(hidden, n, limit) >= -math.log(LEVEL_ALPHA)


def fired_indicators(probes: Iterable[ProbeResult]) -> list[str]:
    """Rules of the screen's probes that found something."""
    return [probe.rule for probe in probes if probe.rule in SCREEN and probe.status == "finding"]


def brought_close(traced: Iterable[Mechanism]) -> bool:
    """Whether the trace saw an op that brings the logits so close together that cross-entropy follows all classes."""
    return any(mechanism.id == SMALL_LOGITS for mechanism in traced)


def fired_at(probes: Iterable[ProbeResult], traced: Iterable[Mechanism] = ()) -> dict[LevelName, bool]:
    """Per level whether the screen fired for it."""
    fired = fired_indicators(probes)
    return {"gradient": bool(fired), "loss": not set(fired).isdisjoint(SCREEN_OF_LOSS) or brought_close(traced)}


def slack_of(fired: bool) -> float:
    """The hidden share that masking must exceed to be proven."""
    return SLACK if fired else GROSS_SLACK


def clear_limit_of(fired: bool) -> float:
    """The hidden share that `clear` excludes."""
    return CLEAR_LIMIT if fired else CLEAR_LIMIT_UNSCREENED


def gradient_limit(probes: Iterable[ProbeResult]) -> float:
    """The share at gradient level that `clear` excludes, by what the screen found."""
    return clear_limit_of(fired_at(probes)["gradient"])


@dataclass(frozen=True)
class Level:
    """Points hidden at a level of so many, whether the screen fired for it, and the limits that apply therefore.

    Limits are shares of all drawn points, as robust accuracy is: what is hidden is by how much accuracy is overstated.
    The share that `rate` gives is of the correct points.

    Attributes:
        n: correct points compared.
        drawn: points drawn among which these are, wrongly classified ones included.
        most: points that could be hidden, whatever the search has missed; None if not known.
        unproven: why the examples prove nothing at it, if they do not.
    """

    hidden: int
    n: int
    drawn: int
    fired: bool
    most: int | None = None
    unproven: str = ""

    @property
    def slack(self) -> float:
        """What masking must exceed to be proven."""
        return slack_of(self.fired)

    @property
    def clear_limit(self) -> float:
        """The share of hidden points that a `clear` verdict must exclude."""
        return clear_limit_of(self.fired)

    @property
    def proven(self) -> bool:
        """Whether masking is proven at this level."""
        return not self.unproven and self.exceeds

    @property
    def exceeds(self) -> bool:
        """Whether more than the slack is hidden."""
        return exceeds(self.hidden, self.drawn, self.slack)

    @property
    def bounded(self) -> bool:
        """Whether less than the limit of `clear` is hidden."""
        return bounded(self.hidden, self.n, self.drawn, self.clear_limit)

    @property
    def certain(self) -> bool:
        """Whether it is bounded even if everything is hidden that could be."""
        return self.most is not None and bounded(self.most, self.n, self.drawn, self.clear_limit)

    @property
    def bound(self) -> float:
        """Upper bound of the share hidden of all drawn points, of what could be hidden where that is bounded."""
        count = self.most if self.certain and self.most is not None else self.hidden
        return upper_bound_at_any_look(count, self.drawn, LEVEL_ALPHA) if self.drawn else 1.0

    @property
    def bound_of_correct(self) -> float:
        """Upper bound of the share hidden of the correct points."""
        return upper_bound_at_any_look(self.hidden, self.n, LEVEL_ALPHA) if self.n else 1.0

    @property
    def unbounded(self) -> list[str]:
        """What is not below its limit, as `up to SHARE (below LIMIT is needed)`; empty where it is bounded."""
        shares = [
            (self.drawn, self.clear_limit, self.bound, "of the points"),
            (self.n, CLEAR_LIMIT_OF_CORRECT, self.bound_of_correct, "of the correct points"),
        ]
        return [
            f"up to {bound:.1%} {of} (below {limit:.0%} is needed)"
            for n, limit, bound, of in shares if not below(self.hidden, n, limit)
        ]  # fmt: skip

    def points_needed(self, most: int) -> int | None:
        """Fewest points that bound it if further ones hide the same share; None where even `most` would not."""
        share, right = self.hidden / max(1, self.drawn), self.n / max(1, self.drawn)

        def enough(drawn: int) -> bool:
            return bounded(round(share * drawn), round(right * drawn), drawn, self.clear_limit)

        sizes = range(self.drawn, max(most, self.drawn) + 1)
        found = bisect_left(sizes, True, key=enough)
        return sizes[found] if found < len(sizes) else None

    def decided_at(self, drawn: int) -> bool:
        """Whether `drawn` points may well bound the hidden share or exceed the slack."""
        return self.bounded_at(drawn) or self._at(drawn, 1).exceeds

    def bounded_at(self, drawn: int) -> bool:
        """Whether `drawn` points may well bound the hidden share: if further ones hid a standard error less."""
        return self._at(drawn, -1).bounded

    def _at(self, drawn: int, errors: int) -> Level:
        """The level if as many points are drawn and the further ones hide so many standard errors more."""
        further = max(0, drawn - self.drawn)
        share = self.hidden / self.drawn if self.drawn else 0.0
        share += errors * math.sqrt(share * (1 - share) / max(1, self.drawn))
        hidden = self.hidden + round(further * min(max(share, 0.0), 1.0))
        n = self.n + round(further * self.n / self.drawn) if self.drawn else drawn
        return replace(self, hidden=min(hidden, n), n=n, drawn=drawn)

    @property
    def rate(self) -> Rate:
        """The share hidden of the correct points; up to what could be hidden, where the search was spared."""
        if not self.n:
            return Rate(0.0, 0.0, 1.0, 0)
        share = rate(self.hidden, self.n)
        return replace(share, high=rate(self.most, self.n).high) if self.certain and self.most else share


def levels_of(seen: Observations) -> dict[LevelName, Level]:
    """The two levels as they were observed."""
    fired, why = fired_at(seen.probes, seen.traced), {"gradient": "", "loss": "", **seen.unproven}
    searched = seen.drawn if seen.searched_drawn is None else seen.searched_drawn
    matched = seen.drawn if seen.matched_drawn is None else seen.matched_drawn
    return {
        "gradient": Level(
            seen.hidden_by_gradients, seen.gradient_points, searched, fired["gradient"], seen.unbroken, why["gradient"]
        ),
        "loss": Level(seen.hidden_by_loss, seen.loss_points, matched, fired["loss"], None, why["loss"]),
    }
