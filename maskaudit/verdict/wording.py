"""The sentences of a verdict: claims about the search, never about the model's nature."""

from __future__ import annotations

from collections.abc import Mapping

from maskaudit.errors import printable
from maskaudit.results import Label, Mechanism
from maskaudit.verdict.levels import Level, LevelName, Observations


def nothing_left(seen: Observations) -> str:
    """Why no gradient-free search was needed."""
    broken = seen.gradient_points - (seen.unbroken or 0)
    return (
        f"White-box attacks break {broken} of {seen.gradient_points} points, so that hardly any is left that a "
        "gradient-free search could reveal."
    )


def proofs(seen: Observations, levels: Mapping[LevelName, Level]) -> list[str]:
    """One sentence per level at which masking is proven."""
    reasons = []
    if levels["gradient"].proven:
        reasons.append(
            f"Gradient level: {seen.hidden_by_gradients} of {seen.gradient_points} points withstand "
            f"{_all(seen.white_box_run)} white-box attacks that ran and are broken by attacks that do not trust the "
            "gradient."
        )
    if levels["loss"].proven:
        reasons.append(
            f"Loss level: {seen.hidden_by_loss} of {seen.loss_points} points withstand {_all(seen.cross_entropy_run)} "
            "attacks on cross-entropy that ran and are broken by white-box attacks on another loss."
        )
    if reasons and seen.repaired:
        reasons.append(
            f"Repaired: with the model's backward pass repaired and its decisions unchanged, {seen.repaired} of the "
            f"{seen.left} points that withstand white-box attacks are broken."
        )
    return reasons


def _all(number: int) -> str:
    return f"all {number}" if number > 1 else "the"


def open_levels(seen: Observations, levels: Mapping[LevelName, Level]) -> list[str]:
    """Where examples would prove masking, had more attacks run: how many points are concerned, and what is missing."""
    return [
        f"{level.hidden} of {level.n} points seem hidden at {name} level, which proves nothing: {level.unproven}."
        for name, level in levels.items()
        if level.unproven and level.exceeds
    ]


def unconfirmed(suspect: Mechanism, seen: Observations, levels: Mapping[LevelName, Level]) -> str:
    """What the trace found on a model of which nothing is proven, for want of attacks or of hidden points."""
    if not seen.repaired:
        doubt = "" if any(level.exceeds for level in levels.values()) else " that the attacks did not confirm"
        return f"The trace suspects a fault{doubt}: {_fault(suspect)}."
    return (
        f"The trace suspects a fault: {_fault(suspect)}. With the gradient repaired, {seen.repaired} of the "
        f"{seen.left} points that withstand white-box attacks are broken"
        f"{'' if levels['gradient'].exceeds else ', too few to prove masking'}."
    )


def unproven(seen: Observations) -> str:
    """What became of the points that withstand white-box attacks, where that proves nothing."""
    left = f"of the {seen.left} points that withstand white-box attacks, "
    if not seen.hidden_by_gradients:
        return f"{left}no gradient-free attack broke any"
    return f"{left}gradient-free attacks broke {seen.hidden_by_gradients}, too few to prove masking"


def _fault(mechanism: Mechanism) -> str:
    """What it is and where, inside a sentence."""
    place = _place(mechanism)
    return _inside(mechanism.title) + (f", in {place}" if place else "")


def _cause(mechanism: Mechanism) -> str:
    """Where the likely cause of masking lies, if that is known, and what it is: a sentence."""
    if place := _place(mechanism):
        return f"The likely cause is the operation {place}: {_inside(mechanism.title)}."
    return f"The likely cause: {_inside(mechanism.title)}."


def _inside(title: str) -> str:
    return f"{title[:1].lower()}{title[1:]}"


def _place(mechanism: Mechanism) -> str:
    """Op, file and line, or the module where no line is known; empty where there is no place."""
    if not mechanism.locations or mechanism.locations[0].op in ("", "output"):  # the output as a whole is no place
        return ""
    where = mechanism.locations[0]
    if where.file and where.line:
        return f"{where.op} ({where.source})"
    return where.op + (f" of {printable(where.module, 60)}" if where.module else "")


def _several(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _although(seen: Observations) -> str:
    """Which essential parts a proof did without."""
    without = [part for part in seen.without if part not in seen.spared]
    if not without:
        return ""
    return f" The examples prove it, although this did not run or failed: {', '.join(without)}."


def sentence(label: Label, seen: Observations, mechanisms: tuple[Mechanism, ...]) -> str:
    """The verdict in one sentence: a claim about the search, never about the model's nature."""
    drawn = max(seen.drawn, 1)
    usual, best = (seen.correct - seen.reference) / drawn, (seen.correct - seen.best) / drawn
    ran = [probe for probe in seen.probes if probe.status in ("pass", "finding")]
    left_out = len(seen.probes) - len(ran) + seen.attacks_left_out
    search = f"{_several(len(ran), 'probe')} and {_several(seen.attacks_run, 'attack')}; {left_out} did not run"
    if seen.deselected:
        search += f", {seen.deselected} left out on request"
    if label == "masked":
        cause = f"{mechanisms[0].title}."
        if mechanisms[0].id != "unknown":
            cause = _cause(mechanisms[0])
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
            f"attack that was tried without its gradients: {_several(seen.attacks_run, 'attack')}."
        )
    if label == "inconclusive" and not ran and not seen.attacks_run:
        return "No verdict: the audit cannot say whether gradients mask anything; no probe and no attack ran."
    if label == "inconclusive":
        return f"No verdict: the audit cannot say whether gradients mask anything; it ran {search}."
    return f"No masking found by {search}; {best:.1%} of the points withstand every attack that was tried."
