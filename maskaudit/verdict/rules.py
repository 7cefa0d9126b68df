"""The judge: pure functions from counts and probe results to the verdict. Knows no torch.

The rule is in this module, its constants are in `maskaudit.verdict.limits`; `docs/verdict.md` explains both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from maskaudit.results import Claim, ClaimStatus, Label, ProbeResult, Rate, Verdict
from maskaudit.verdict.levels import (
    Level,
    LevelName,
    Observations,
    brought_close,
    clear_limit_of,
    fired_indicators,
    levels_of,
)
from maskaudit.verdict.limits import (
    ALPHA,
    CLEAR_LIMIT_OF_CORRECT,
    GROSS_SLACK,
    MIN_POINTS,
    MOST_ADVISED,
    NO_GRADIENT_SHARE,
    SCREEN,
    SLACK,
    SMALL_LOGITS,
)
from maskaudit.verdict.mechanisms import name_mechanisms
from maskaudit.verdict.power import NOT_CHECKED
from maskaudit.verdict.statistics import rate, upper_bound_at_any_look
from maskaudit.verdict.wording import nothing_left, open_levels, proofs, sentence, unconfirmed, unproven

#: What could still change a verdict.
Need = Literal["nothing", "points", "power"]
#: What the report calls the test of this rule.
ANY_LOOK = "any look"


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
    screen = _screen(seen.probes, brought_close(seen.traced))
    levels = levels_of(seen)
    label, needs, reasons = _label(seen, levels)
    mechanisms = name_mechanisms(seen.probes, seen.traced, by_loss=levels["loss"].proven)
    shown = mechanisms if label in ("masked", "suspect") else ()
    if not shown and seen.traced and seen.traced[0].confidence != "low":
        reasons = [*reasons, unconfirmed(seen.traced[0], seen, levels)]
    accuracy = _accuracy(seen)
    return Judgement(
        verdict=Verdict(label, sentence(label, seen, shown), shown, (*reasons, *seen.caveats)),
        claim=Claim(seen.claimed, _claim_status(seen)),
        accuracy=accuracy,
        masking={
            "gradient_level": levels["gradient"].rate,
            "loss_level": levels["loss"].rate,
            "screen": screen,
            "rule": {
                "alpha": ALPHA, "test": ANY_LOOK, "slack": SLACK, "gross_slack": GROSS_SLACK,
                "clear_limit": clear_limit_of(screen["fired"]), "clear_limit_of_correct": CLEAR_LIMIT_OF_CORRECT,
                "limits": {
                    f"{name}_level": {
                        "slack": level.slack, "clear_limit": level.clear_limit, "unproven": level.unproven,
                        "drawn": level.drawn,
                    }
                    for name, level in levels.items()
                },
            },
        },
        needs=needs,
        undecided=frozenset(
            name for name, level in levels.items()
            if not (level.bounded or level.proven) or (name == "gradient" and _power_needs(seen, level) == "points")
        ),
    )  # fmt: skip


def _label(seen: Observations, levels: Mapping[LevelName, Level]) -> tuple[Label, Need, list[str]]:
    """Label, what could still change it, and the reasons."""
    if seen.black_box:
        return "inconclusive", "nothing", [
            *seen.missing, "A black box has no gradients to audit: the audit cannot say whether any hide its weakness."
        ]  # fmt: skip
    if proven := proofs(seen, levels):
        needed = (reason for reason in seen.missing if reason not in seen.spared.values())
        return "masked", "nothing", [*proven, *needed]
    if seen.correct < MIN_POINTS:
        return "inconclusive", "points", [
            f"Of {seen.drawn} points only {seen.correct} are classified correctly; at least {MIN_POINTS} are needed.",
            *seen.missing,
        ]  # fmt: skip
    if lacking := [*seen.missing, *open_levels(seen, levels)]:
        return "inconclusive", "points", lacking
    if _uninformative(seen.probes) and seen.best < seen.correct / 2:
        return "suspect", "points", [f"Most points have no usable gradient under any loss; {unproven(seen)}."]
    if wide := [f"{name} level {share}" for name, level in levels.items() for share in level.unbounded]:
        advised = [level.points_needed(MOST_ADVISED) or 0 for level in levels.values()]
        points = f" {max(advised)}" if all(advised) else ""
        return "inconclusive", "points", [
            f"The hidden share cannot be bounded: {'; '.join(wide)}. Audit more points (--samples{points})."
        ]  # fmt: skip
    if (need := _power_needs(seen, levels["gradient"])) is not None:
        return "inconclusive", need, [seen.power.sentence]
    most = max(level.bound for level in levels.values())
    return "clear", "nothing", [
        f"At most {most:.1%} of the points are hidden by gradients or loss: a bound that holds at all looks together.",
        nothing_left(seen) if levels["gradient"].certain else seen.power.sentence,
    ]  # fmt: skip


def _power_needs(seen: Observations, level: Level) -> Need | None:
    """What is lacking before `clear` may rest on the power of the search; None where it may, or need not."""
    if level.certain or seen.power.passed:
        return None
    if seen.power == NOT_CHECKED:
        return "power"
    return "nothing" if seen.power.settled else "points"


def _screen(probes: tuple[ProbeResult, ...], close: bool) -> dict[str, Any]:
    """Which indicators fired, close logits among them; a probe that could not run fires nothing."""
    indicators = {
        probe.rule: {"value": probe.value, "threshold": probe.threshold, "fired": probe.status == "finding"}
        for probe in probes
        if probe.rule in SCREEN and probe.status in ("pass", "finding")
    }
    fired = fired_indicators(probes)
    if close:  # one op that brings logits close together, where there should be none
        indicators[SMALL_LOGITS] = {"value": 1, "threshold": 0, "fired": True}
        fired.append(SMALL_LOGITS)
    return {"fired": bool(fired), "reasons": fired, "indicators": indicators}


def _uninformative(probes: tuple[ProbeResult, ...]) -> bool:
    """Whether most points have no gradient even of the margin."""
    for probe in probes:
        if probe.rule == "zero-gradient" and probe.status in ("pass", "finding"):
            share = probe.details.get("zero_margin_share", 0.0)
            return isinstance(share, (int, float)) and share > NO_GRADIENT_SHARE
    return False


def _accuracy(seen: Observations) -> dict[str, Rate | None]:
    """Accuracies over all drawn points, None where nothing measured them: a wrong clean answer counts as broken."""
    if seen.drawn == 0:
        return dict.fromkeys(("clean", "reference", "strong_reference", "best_known", "certified"))
    found: dict[str, Rate | None] = {
        "clean": rate(seen.correct, seen.drawn),
        "reference": rate(seen.correct - seen.reference, seen.drawn),
        "strong_reference": rate(seen.correct - seen.strong, seen.drawn),
        "best_known": rate(seen.correct - seen.best, seen.drawn),
        "certified": None if seen.certified is None else Rate(seen.certified, seen.certified, 1.0, seen.drawn),
    }
    return found | dict.fromkeys(seen.unmeasured)


def _claim_status(seen: Observations) -> ClaimStatus:
    if seen.claimed is None:
        return "no_claim"
    if seen.drawn == 0:
        return "not_refuted"
    unbroken = seen.correct - seen.best
    return "refuted" if upper_bound_at_any_look(unbroken, seen.drawn, ALPHA) < seen.claimed else "not_refuted"
