"""The judge: pure functions from counts and probe results to the verdict. Knows no torch.

The rule is in this module, its constants are in `maskaudit.verdict.limits`; `docs/verdict.md` explains both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal

from maskaudit.results import Claim, ClaimStatus, Label, Mechanism, ProbeResult, Rate, Verdict
from maskaudit.verdict.limits import (
    ALPHA,
    CLEAR_LIMIT,
    CLEAR_LIMIT_UNSCREENED,
    GROSS_SLACK,
    MIN_POINTS,
    NO_GRADIENT_SHARE,
    SCREEN,
    SCREEN_OF_LOSS,
    SLACK,
)
from maskaudit.verdict.mechanisms import name_mechanisms
from maskaudit.verdict.power import NOT_CHECKED, Power
from maskaudit.verdict.statistics import evidence_above, evidence_below, rate, upper_bound_at_any_look

#: What could still change a verdict.
Need = Literal["nothing", "points", "power"]
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


#: What the report calls the test of this rule.
ANY_LOOK = "any look"
#: Error level of one comparison, at all looks together: the two levels share `ALPHA`.
LEVEL_ALPHA = ALPHA / 2


def bounded(hidden: int, n: int, limit: float) -> bool:
    """Whether a hidden share is below `limit` by the counts so far, at an error of `LEVEL_ALPHA` over all looks."""
    return evidence_below(hidden, n, limit) >= -math.log(LEVEL_ALPHA)


def exceeds(hidden: int, n: int, limit: float) -> bool:
    """Whether it is above `limit`, likewise."""
    return evidence_above(hidden, n, limit) >= -math.log(LEVEL_ALPHA)


@dataclass(frozen=True)
class Judgement:
    """The verdict with its figures.

    Attributes:
        needs: what could still change the verdict: more points, or the power check, which is made only where `clear`
            depends on it; "nothing" once it is decided.
        undecided: levels whose hidden share is neither bounded nor proven.
    """

    verdict: Verdict
    claim: Claim
    accuracy: dict[str, Rate | None]
    masking: dict[str, Any]
    needs: Need
    undecided: frozenset[LevelName] = frozenset()


def judge(seen: Observations) -> Judgement:
    """Apply the rule to what was observed."""
    screen = _screen(seen.probes)
    levels = _levels(seen, screen["reasons"])
    label, needs, reasons = _label(seen, levels)
    mechanisms = name_mechanisms(seen.probes, seen.traced, by_loss=levels["loss"].proven)
    shown = mechanisms if label in ("masked", "suspect") else ()
    if not shown and seen.traced and seen.traced[0].confidence != "low":
        reasons = [*reasons, _unconfirmed(seen.traced[0], seen)]
    accuracy = _accuracy(seen)
    return Judgement(
        verdict=Verdict(label, _sentence(label, seen, shown), shown, (*reasons, *seen.caveats)),
        claim=Claim(seen.claimed, _claim_status(seen)),
        accuracy=accuracy,
        masking={
            "gradient_level": _hidden_rate(levels["gradient"]),
            "loss_level": _hidden_rate(levels["loss"]),
            "screen": screen,
            "rule": {
                "alpha": ALPHA, "test": ANY_LOOK, "slack": SLACK, "gross_slack": GROSS_SLACK,
                "clear_limit": CLEAR_LIMIT if screen["fired"] else CLEAR_LIMIT_UNSCREENED,
                "limits": {
                    f"{name}_level": {
                        "slack": level.slack, "clear_limit": level.clear_limit, "unproven": level.unproven,
                    }
                    for name, level in levels.items()
                },
            },
        },
        needs=needs,
        undecided=frozenset(name for name, level in levels.items() if not (level.bounded or level.proven)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Level:
    """Points hidden at a level of so many, whether the screen fired for it, and the limits that apply therefore.

    Attributes:
        most: points that could be hidden, whatever the search has missed; None if not known.
        unproven: why the examples prove nothing at it, if they do not.
    """

    hidden: int
    n: int
    fired: bool
    most: int | None = None
    unproven: str = ""

    @property
    def slack(self) -> float:
        return SLACK if self.fired else GROSS_SLACK

    @property
    def clear_limit(self) -> float:
        return CLEAR_LIMIT if self.fired else CLEAR_LIMIT_UNSCREENED

    @property
    def proven(self) -> bool:
        return not self.unproven and self.exceeds

    @property
    def exceeds(self) -> bool:
        return exceeds(self.hidden, self.n, self.slack)

    @property
    def bounded(self) -> bool:
        return bounded(self.hidden, self.n, self.clear_limit)

    @property
    def certain(self) -> bool:
        """Whether it is bounded even if everything is hidden that could be."""
        return self.most is not None and bounded(self.most, self.n, self.clear_limit)


def gradient_limit(probes: Iterable[ProbeResult]) -> float:
    """The share at gradient level that `clear` excludes, by what the screen found."""
    return CLEAR_LIMIT if fired_indicators(probes) else CLEAR_LIMIT_UNSCREENED


def _levels(seen: Observations, fired: Sequence[str]) -> dict[LevelName, _Level]:
    """The two levels, given which rules of the screen fired."""
    why = {"gradient": "", "loss": "", **seen.unproven}
    by_loss = not set(fired).isdisjoint(SCREEN_OF_LOSS)
    return {
        "gradient": _Level(seen.hidden_by_gradients, seen.gradient_points, bool(fired), seen.unbroken, why["gradient"]),
        "loss": _Level(seen.hidden_by_loss, seen.loss_points, by_loss, None, why["loss"]),
    }


def _label(seen: Observations, levels: Mapping[LevelName, _Level]) -> tuple[Label, Need, list[str]]:
    """Label, what could still change it, and the reasons."""
    if seen.black_box:
        return "inconclusive", "nothing", [
            *seen.missing, "A black box has no gradients to audit: the audit cannot say whether any hide its weakness."
        ]  # fmt: skip
    proofs = _proofs(seen, levels)
    if proofs:
        needed = (reason for reason in seen.missing if reason not in seen.spared.values())
        return "masked", "nothing", [*proofs, *needed]
    if seen.correct < MIN_POINTS:
        return "inconclusive", "points", [
            f"Only {seen.correct} of {seen.drawn} points are classified correctly; at least {MIN_POINTS} are needed.",
            *seen.missing,
        ]  # fmt: skip
    if lacking := [*seen.missing, *_open(seen, levels)]:
        return "inconclusive", "points", lacking
    if _uninformative(seen.probes) and seen.best < seen.correct / 2:
        return "suspect", "points", [f"Most points have no usable gradient under any loss; {_unproven(seen)}."]
    wide = {name: level for name, level in levels.items() if not level.bounded}
    if wide:
        limits = " and ".join(f"{limit:.0%}" for limit in dict.fromkeys(level.clear_limit for level in wide.values()))
        shares = ", ".join(f"{name} level up to {_most(level):.1%}" for name, level in wide.items())
        return "inconclusive", "points", [
            f"The hidden share of points cannot be bounded below {limits}: {shares}; audit more points (--samples)."
        ]  # fmt: skip
    certain = levels["gradient"].certain
    if not (certain or seen.power.passed):
        return "inconclusive", "power" if seen.power == NOT_CHECKED else "points", [seen.power.sentence]
    most = max(_most(level) for level in levels.values())
    return "clear", "nothing", [
        f"At most {most:.1%} of the correctly classified points can be hidden by gradients or loss.",
        _nothing_left(seen) if certain else seen.power.sentence,
    ]  # fmt: skip


def _most(level: _Level) -> float:
    """Upper bound of the hidden share at a level, of what could be hidden where that is bounded."""
    count = level.most if level.certain and level.most is not None else level.hidden
    return upper_bound_at_any_look(count, level.n, LEVEL_ALPHA) if level.n else 1.0


def _nothing_left(seen: Observations) -> str:
    """Why no gradient-free search was needed."""
    broken = seen.gradient_points - (seen.unbroken or 0)
    return (
        f"White-box attacks break {broken} of {seen.gradient_points} points, so that hardly any is left that a "
        "gradient-free search could reveal."
    )


def _proofs(seen: Observations, levels: Mapping[LevelName, _Level]) -> list[str]:
    """One sentence per level at which masking is proven."""
    reasons = []
    if levels["gradient"].proven:
        reasons.append(
            f"Gradient level: {seen.hidden_by_gradients} of {seen.gradient_points} points survive "
            f"{_all(seen.white_box_run)} white-box attacks that ran and are broken by attacks that do not trust the "
            "gradient."
        )
    if levels["loss"].proven:
        reasons.append(
            f"Loss level: {seen.hidden_by_loss} of {seen.loss_points} points survive {_all(seen.cross_entropy_run)} "
            "attacks on cross-entropy that ran and are broken by white-box attacks on another loss."
        )
    if reasons and seen.repaired:
        reasons.append(
            f"Repaired: with its gradient repaired and its decisions unchanged, {seen.repaired} of the "
            f"{seen.left} points that withstand white-box attacks are broken."
        )
    return reasons


def _all(number: int) -> str:
    return f"all {number}" if number > 1 else "the"


def _open(seen: Observations, levels: Mapping[LevelName, _Level]) -> list[str]:
    """Where examples would prove masking, had more attacks run: how many points are concerned, and what is missing."""
    return [
        f"{level.hidden} of {level.n} points seem hidden at {name} level, which proves nothing: {level.unproven}."
        for name, level in levels.items()
        if level.unproven and level.exceeds
    ]


def _unconfirmed(suspect: Mechanism, seen: Observations) -> str:
    """What the trace found on a model of which nothing is proven."""
    if not seen.repaired:
        return f"The trace suspects a fault that the attacks did not confirm: {_cause(suspect)}."
    return (
        f"The trace suspects a fault: {_cause(suspect)}. With the gradient repaired, {seen.repaired} of the "
        f"{seen.left} points that withstand white-box attacks are broken, too few to prove masking."
    )


def _unproven(seen: Observations) -> str:
    """What became of the points that withstand white-box attacks, where that proves nothing."""
    left = f"of the {seen.left} points that withstand white-box attacks, "
    if not seen.hidden_by_gradients:
        return f"{left}no attack that does without gradients broke any"
    return f"{left}attacks that do without gradients broke {seen.hidden_by_gradients}, too few to prove masking"


def fired_indicators(probes: Iterable[ProbeResult]) -> list[str]:
    """Rules of the screen's probes that found something."""
    return [probe.rule for probe in probes if probe.rule in SCREEN and probe.status == "finding"]


def _screen(probes: tuple[ProbeResult, ...]) -> dict[str, Any]:
    """Which indicators fired; a probe that could not run fires nothing."""
    indicators = {
        probe.rule: {"value": probe.value, "threshold": probe.threshold, "fired": probe.status == "finding"}
        for probe in probes
        if probe.rule in SCREEN and probe.status in ("pass", "finding")
    }
    fired = fired_indicators(probes)
    return {"fired": bool(fired), "reasons": fired, "indicators": indicators}


def _uninformative(probes: tuple[ProbeResult, ...]) -> bool:
    """Whether most points have no gradient even of the margin."""
    for probe in probes:
        if probe.rule == "zero-gradient" and probe.status in ("pass", "finding"):
            share = probe.details.get("zero_margin_share", 0.0)
            return isinstance(share, (int, float)) and share > NO_GRADIENT_SHARE
    return False


def _hidden_rate(level: _Level) -> Rate:
    """The hidden share; up to what could be hidden, where the search was spared for want of points."""
    if not level.n:
        return Rate(0.0, 0.0, 1.0, 0)
    share = rate(level.hidden, level.n)
    return replace(share, high=rate(level.most, level.n).high) if level.certain and level.most else share


def _accuracy(seen: Observations) -> dict[str, Rate | None]:
    """Accuracies over all drawn points: a wrong clean answer counts as broken."""
    if seen.drawn == 0:
        return dict.fromkeys(("clean", "reference", "strong_reference", "best_known", "certified"))
    return {
        "clean": rate(seen.correct, seen.drawn),
        "reference": rate(seen.correct - seen.reference, seen.drawn),
        "strong_reference": rate(seen.correct - seen.strong, seen.drawn),
        "best_known": rate(seen.correct - seen.best, seen.drawn),
        "certified": None if seen.certified is None else Rate(seen.certified, seen.certified, 1.0, seen.drawn),
    }


def _cause(mechanism: Mechanism) -> str:
    """What it is and where, inside a sentence."""
    return f"{mechanism.title[0].lower()}{mechanism.title[1:]}{_place(mechanism)}"


def _place(mechanism: Mechanism) -> str:
    """Where, as the end of a sentence: op, file and line as far as they are known."""
    if not mechanism.locations or mechanism.locations[0].op in ("", "output"):  # the output as a whole is no place
        return ""
    where = mechanism.locations[0]
    line = f" ({PurePath(where.file).name}:{where.line})" if where.file and where.line else ""
    return f", in {where.op}{line}"


def _claim_status(seen: Observations) -> ClaimStatus:
    if seen.claimed is None:
        return "no_claim"
    if seen.drawn == 0:
        return "not_refuted"
    unbroken = seen.correct - seen.best
    return "refuted" if upper_bound_at_any_look(unbroken, seen.drawn, ALPHA) < seen.claimed else "not_refuted"


def _several(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _although(seen: Observations) -> str:
    """Which essential parts a proof did without."""
    without = [part for part in seen.without if part not in seen.spared]
    if not without:
        return ""
    return f" The examples prove it, although this did not run or failed: {', '.join(without)}."


def _sentence(label: Label, seen: Observations, mechanisms: tuple[Mechanism, ...]) -> str:
    """The verdict in one sentence: a claim about the search, never about the model's nature."""
    drawn = max(seen.drawn, 1)
    usual, best = (seen.correct - seen.reference) / drawn, (seen.correct - seen.best) / drawn
    ran = [probe for probe in seen.probes if probe.status in ("pass", "finding")]
    left_out = len(seen.probes) - len(ran) + seen.attacks_left_out
    search = f"{_several(len(ran), 'probe')} and {_several(seen.attacks_run, 'attack')}; {left_out} not applicable"
    if seen.deselected:
        search += f", {seen.deselected} left out on request"
    if label == "masked":
        cause = f"{mechanisms[0].title}."
        if mechanisms[0].id != "unknown":
            cause = f"The likely cause: {_cause(mechanisms[0])}."
        return (
            f"Robustness is overstated: {usual:.1%} of the points withstand the usual attack, "
            f"at most {best:.1%} withstand every attack that was tried. {cause}{_although(seen)}"
        )
    if label == "suspect":
        return (
            f"The gradients carry no information here, and yet {best:.1%} of the points withstand every attack that "
            f"was tried: searched with {search}."
        )
    if seen.black_box:
        return (
            f"No verdict on gradients: the model is a black box. At most {best:.1%} of the points withstand every "
            f"attack that was tried by queries and transfer: {seen.attacks_run} attacks."
        )
    if label == "inconclusive":
        return f"No verdict: the audit cannot say whether gradients mask anything; it ran {search}."
    return f"No masking found by {search}; {best:.1%} of the points withstand every attack that was tried."
