"""The judge: pure functions from counts and probe results to the verdict. Knows no torch.

The rule is in this module, its constants are in `maskaudit.verdict.limits`; `docs/verdict.md` explains both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from maskaudit.verdict.statistics import lower_bound, rate, spend, upper_bound

#: What could still change a verdict.
Need = Literal["nothing", "points", "power"]


@dataclass(frozen=True)
class Observations:
    """What the judge sees; counts of points.

    Attributes:
        drawn: points drawn; `correct`: of these, classified correctly.
        reference, cross_entropy, strong, challengers, best: correct points broken by R₀, CE*, G*, C and anything.
        hidden_by_gradients: broken by C, not by G*.
        hidden_by_loss: broken by G*, not by CE*.
        probes: graded probe results.
        power: the power check.
        looks: sequential looks that the error level is shared among.
        traced: mechanisms that the trace of the model located.
        repaired: points broken through the repaired gradient of those that withstand white-box attacks; None if nothing
            was repaired.
        missing: reasons why an essential part did not run; empty when all did.
        without: the names of these parts, for the wording.
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
    looks: int = 1
    traced: tuple[Mechanism, ...] = ()
    repaired: int | None = None
    missing: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
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
    def alpha(self) -> float:
        """One-sided error level of one comparison at one look."""
        return error_level(self.looks)


def error_level(looks: int) -> float:
    """One-sided error level of one comparison at one of so many looks: two levels share each look's part of `ALPHA`."""
    return spend(ALPHA, 2 * looks)[0]


@dataclass(frozen=True)
class Judgement:
    """The verdict with its figures.

    Attributes:
        needs: what could still change the verdict: more points, or the power check, which is made only where `clear`
            depends on it; "nothing" once it is decided.
    """

    verdict: Verdict
    claim: Claim
    accuracy: dict[str, Rate | None]
    masking: dict[str, Any]
    needs: Need


def judge(seen: Observations) -> Judgement:
    """Apply the rule to what was observed."""
    screen = _screen(seen.probes)
    levels = _levels(seen, screen["reasons"])
    label, needs, reasons = _label(seen, levels)
    mechanisms = name_mechanisms(seen.probes, seen.traced, by_loss=_proven(seen, levels["loss"]))
    shown = mechanisms if label in ("masked", "suspect") else ()
    if not shown and seen.traced and seen.traced[0].confidence != "low":
        reasons = [*reasons, _unconfirmed(seen.traced[0], seen)]
    accuracy = _accuracy(seen)
    return Judgement(
        verdict=Verdict(label, _sentence(label, seen, shown), shown, (*reasons, *seen.caveats)),
        claim=Claim(seen.claimed, _claim_status(seen)),
        accuracy=accuracy,
        masking={
            "gradient_level": _hidden_rate(seen, seen.hidden_by_gradients),
            "loss_level": _hidden_rate(seen, seen.hidden_by_loss),
            "screen": screen,
            "rule": {
                "alpha": ALPHA, "looks": seen.looks, "slack": SLACK, "gross_slack": GROSS_SLACK,
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
    )  # fmt: skip


@dataclass(frozen=True)
class _Level:
    """Points hidden at a level, whether the screen fired for it, the limits that apply therefore, and why the examples
    prove nothing at it, if they do not."""

    hidden: int
    fired: bool
    unproven: str = ""

    @property
    def slack(self) -> float:
        return SLACK if self.fired else GROSS_SLACK

    @property
    def clear_limit(self) -> float:
        return CLEAR_LIMIT if self.fired else CLEAR_LIMIT_UNSCREENED


def _levels(seen: Observations, fired: Sequence[str]) -> dict[str, _Level]:
    """The two levels, given which rules of the screen fired."""
    return {
        "gradient": _Level(seen.hidden_by_gradients, bool(fired), seen.unproven.get("gradient", "")),
        "loss": _Level(seen.hidden_by_loss, not set(fired).isdisjoint(SCREEN_OF_LOSS), seen.unproven.get("loss", "")),
    }


def _label(seen: Observations, levels: Mapping[str, _Level]) -> tuple[Label, Need, list[str]]:
    """Label, what could still change it, and the reasons."""
    if seen.black_box:
        return "inconclusive", "nothing", [
            *seen.missing, "A black box has no gradients to audit: whether any hide its weakness cannot be said."
        ]  # fmt: skip
    proofs = _proofs(seen, levels)
    if proofs:
        return "masked", "nothing", [*proofs, *seen.missing]
    if seen.correct < MIN_POINTS:
        return "inconclusive", "points", [
            f"Only {seen.correct} of {seen.drawn} points are classified correctly; at least {MIN_POINTS} are needed.",
            *seen.missing,
        ]  # fmt: skip
    if lacking := [*seen.missing, *_open(seen, levels)]:
        return "inconclusive", "points", lacking
    if _uninformative(seen.probes) and seen.best < seen.correct / 2:
        return "suspect", "points", [f"Most points have no usable gradient under any loss; {_unproven(seen)}."]
    bounds = {name: upper_bound(level.hidden, seen.correct, seen.alpha) for name, level in levels.items()}
    wide = {name: level.clear_limit for name, level in levels.items() if bounds[name] >= level.clear_limit}
    if wide:
        limits = " and ".join(f"{limit:.0%}" for limit in dict.fromkeys(wide.values()))
        shares = ", ".join(f"{name} level up to {bounds[name]:.1%}" for name in wide)
        return "inconclusive", "points", [
            f"The hidden share of points cannot be bounded below {limits}: {shares}; audit more points (--samples)."
        ]  # fmt: skip
    if not seen.power.passed:
        return "inconclusive", "power" if seen.power == NOT_CHECKED else "points", [seen.power.sentence]
    return "clear", "nothing", [
        f"At most {max(bounds.values()):.1%} of the correctly classified points can be hidden by gradients or loss.",
        seen.power.sentence,
    ]  # fmt: skip


def _proofs(seen: Observations, levels: Mapping[str, _Level]) -> list[str]:
    """One sentence per level at which masking is proven."""
    said = []
    if _proven(seen, levels["gradient"]):
        said.append(
            f"Gradient level: {seen.hidden_by_gradients} of {seen.correct} points survive {_all(seen.white_box_run)} "
            "white-box attacks that ran and fall to attacks that do not trust the gradient."
        )
    if _proven(seen, levels["loss"]):
        said.append(
            f"Loss level: {seen.hidden_by_loss} of {seen.correct} points survive {_all(seen.cross_entropy_run)} "
            "attacks on cross-entropy that ran and fall to white-box attacks on another loss."
        )
    if said and seen.repaired:
        said.append(
            f"Repaired: with its gradient repaired and its decisions unchanged, {seen.repaired} of the "
            f"{seen.correct - seen.strong} points that withstand white-box attacks fall."
        )
    return said


def _all(number: int) -> str:
    return f"all {number}" if number > 1 else "the"


def _open(seen: Observations, levels: Mapping[str, _Level]) -> list[str]:
    """Where examples would prove masking, had more attacks run: how many points are concerned, and what is missing."""
    return [
        f"{level.hidden} of {seen.correct} points seem hidden at {name} level, which proves nothing: {level.unproven}."
        for name, level in levels.items()
        if level.unproven and _exceeds(seen, level)
    ]


def _unconfirmed(suspect: Mechanism, seen: Observations) -> str:
    """What the trace found on a model of which nothing is proven."""
    if not seen.repaired:
        return f"The trace suspects a fault that the attacks did not confirm: {_cause(suspect)}."
    return (
        f"The trace suspects a fault: {_cause(suspect)}. With the gradient repaired, {seen.repaired} of the "
        f"{seen.correct - seen.strong} points that withstand white-box attacks fall, too few to prove masking."
    )


def _unproven(seen: Observations) -> str:
    """What became of the points that withstand white-box attacks, where that proves nothing."""
    left = f"of the {seen.correct - seen.strong} points that withstand white-box attacks, "
    if not seen.hidden_by_gradients:
        return f"{left}no attack that does without them broke any"
    return f"{left}attacks that do without them broke {seen.hidden_by_gradients}, too few to prove masking"


def _proven(seen: Observations, level: _Level) -> bool:
    return not level.unproven and _exceeds(seen, level)


def _exceeds(seen: Observations, level: _Level) -> bool:
    return seen.correct > 0 and lower_bound(level.hidden, seen.correct, seen.alpha) > level.slack


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


def _hidden_rate(seen: Observations, hidden: int) -> Rate:
    return rate(hidden, seen.correct) if seen.correct else Rate(0.0, 0.0, 1.0, 0)


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
    return "refuted" if upper_bound(unbroken, seen.drawn, ALPHA / seen.looks) < seen.claimed else "not_refuted"


def _several(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _although(seen: Observations) -> str:
    """Which essential parts a proof did without."""
    if not seen.without:
        return ""
    return f" The examples prove it, although this did not run or failed: {', '.join(seen.without)}."


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
