"""Name the mechanism behind a masked gradient from what the probes measured. Pure; knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskaudit.results import Confidence, Location, Mechanism, ProbeResult
from maskaudit.verdict.limits import NO_GRADIENT_SHARE, OVERFITTING_GAP, SMALL_LOGITS, SMOOTH_SHARE

TITLES: Mapping[str, str] = {
    "cut": "The gradient is cut: data reach the output by a way that is not in the autograd graph",
    "failing-backward": "The backward pass fails, so that there is no gradient at all",
    "saturation": "Saturated activations let no gradient through",
    "shattered": "The gradient is zero on most points although the output changes",
    "lying-backward": "The backward pass disagrees with the function it belongs to",
    "jagged-surface": "The surface is jagged at small scales, so its gradient points nowhere useful",
    "logit-scale": "The logits are so large that cross-entropy has gone flat in float32",
    "output-hides-loss": "The scores are destroyed or bent before they are given out, and the loss with them",
    "test-time-optimisation": "The model optimises inside its forward pass",
    "stochastic": "Random answers drown the gradient",
    SMALL_LOGITS: "The logits are so close together that cross-entropy leads to all classes, not to the nearest",
    "flat-loss": "Attacks on cross-entropy miss what attacks on the margin find",
    "imbalanced-margin": "One term of the margin has a far larger gradient than the other and leads attacks astray",
    "catastrophic-overfitting": "Single-step attacks fail where small steps succeed: the surface is bent in the ball",
    "unknown": "The cause could not be determined by the probes",
}

_ORDER = tuple(TITLES)

#: What probes may add to a traced mechanism: properties of the outputs, not of an op.
_BESIDES_TRACE = ("logit-scale", SMALL_LOGITS, "imbalanced-margin", "catastrophic-overfitting", "stochastic")

#: Kinds of output, by the probe of that name, from which no loss can be computed, however large the scores are.
DESTROYED = ("constant", "one-hot", "clipped logits", "rounded probabilities")

#: Mechanisms that act on the loss, not on the gradient of the scores.
_OF_THE_LOSS = ("output-hides-loss", "logit-scale", SMALL_LOGITS, "flat-loss", "imbalanced-margin")


def located(trace: Mapping[str, Any]) -> tuple[Mechanism, ...]:
    """The mechanisms that a trace (plain form, see `maskaudit.auditing.inspection`) located, most certain first.

    A line that was named for several of its ops is listed once. Last comes what is no fault but where attacks on
    cross-entropy miss what others find.
    """
    found = (
        Mechanism(
            culprit["mechanism"],
            TITLES.get(culprit["mechanism"], culprit["mechanism"]),
            culprit["confidence"],
            (Location(**culprit["location"]),),
        )
        for culprit in trace.get("culprits", ())
    )
    close = trace.get("shrinks")
    small = (Mechanism(SMALL_LOGITS, TITLES[SMALL_LOGITS], "low", (Location(**close),)),) if close else ()
    return (*dict.fromkeys(found), *small)


def name_mechanisms(
    probes: tuple[ProbeResult, ...], traced: tuple[Mechanism, ...] = (), *, by_loss: bool
) -> tuple[Mechanism, ...]:
    """Mechanisms that fit the evidence, most specific first; at least one.

    What the trace located leads; the probes add what a trace cannot see in single ops.

    Args:
        probes: graded probe results.
        traced: what the trace of the model located, most certain first.
        by_loss: whether masking is proven at loss level.
    """
    close = next((one.locations for one in traced if one.id == SMALL_LOGITS), None)
    traced = tuple(one for one in traced if one.id != SMALL_LOGITS)
    by_rule = {probe.rule: probe for probe in probes if probe.status in ("pass", "finding")}
    found: dict[str, tuple[Confidence, tuple[Location, ...]]] = {}
    zero = by_rule.get("zero-gradient")
    margin_zero = _figure(zero, "zero_margin_share")
    if zero is not None and zero.details.get("connected") is False:
        found["cut"] = ("high", ())
    agreement = by_rule.get("finite-difference-agreement")
    if "cut" not in found and margin_zero > NO_GRADIENT_SHARE:
        found["lying-backward" if _changes_at_every_scale(agreement) else "shattered"] = ("medium", ())
    if agreement is not None and agreement.status == "finding" and margin_zero <= NO_GRADIENT_SHARE:
        found[_disagreement(agreement)] = ("medium", ())
    saturation = by_rule.get("saturation")
    if saturation is not None and saturation.status == "finding" and saturation.findings:
        found.pop("lying-backward", None)  # flat activations explain the disagreement
        found["saturation"] = ("medium", tuple(item.location for item in saturation.findings))
    output = by_rule.get("output-kind")
    if _finding(output) and output is not None and output.details.get("kind") in DESTROYED:
        found["output-hides-loss"] = ("medium", ())
    elif _finding(by_rule.get("loss-decision-gradient-ratio")) or _finding(output):
        found["logit-scale"] = ("high" if by_loss else "medium", ())
    elif by_loss and close is not None:
        found[SMALL_LOGITS] = ("medium", close)
    elif _finding(by_rule.get("imbalanced-margin")):
        found["imbalanced-margin"] = ("medium" if by_loss else "low", ())
    elif by_loss and "saturation" not in found:
        found["flat-loss"] = ("medium", ())
    if _overfitted(by_rule.get("one-step-beats-iterative")):
        found["catastrophic-overfitting"] = ("medium", ())
    randomness = by_rule.get("randomness")
    if randomness is not None and (randomness.value or 0.0) > 0:
        found["stochastic"] = ("low", ())
    if traced:
        known = {mechanism.id for mechanism in traced}
        found = {name: found[name] for name in _BESIDES_TRACE if name in found and name not in known}
    elif not found:
        found["unknown"] = ("low", ())
    ranked = sorted(found, key=lambda name: (by_loss and name not in _OF_THE_LOSS, _ORDER.index(name)))
    return (*traced, *(Mechanism(name, TITLES[name], *found[name]) for name in ranked))


def _scales(agreement: ProbeResult | None) -> list[dict[str, Any]]:
    scales = agreement.details.get("scales") if agreement is not None else None
    return [scale for scale in scales if isinstance(scale, dict)] if isinstance(scales, list) else []


def _changes_at_every_scale(agreement: ProbeResult | None) -> bool:
    """Whether the outputs still move at the finest step: a smooth function, not one of steps."""
    points = [scale["points"] for scale in _scales(agreement) if isinstance(scale.get("points"), int)]
    return bool(points) and points[0] > 0 and points[-1] > SMOOTH_SHARE * points[0]


def _disagreement(agreement: ProbeResult) -> str:
    """Jagged when coarse and fine differences tell different stories, lying when all of them contradict autograd."""
    values = [s["agreement"] for s in _scales(agreement) if isinstance(s.get("agreement"), (int, float))]
    limit = agreement.threshold if agreement.threshold is not None else 0.0
    return "jagged-surface" if any(value >= limit for value in values) else "lying-backward"


def _overfitted(one_step: ProbeResult | None) -> bool:
    """Whether single steps break far fewer points than the reference does: the mark of single-step training."""
    if one_step is None or not one_step.n:
        return False
    return (_figure(one_step, "broken_by_rival") - _figure(one_step, "broken")) / one_step.n > OVERFITTING_GAP


def _finding(probe: ProbeResult | None) -> bool:
    return probe is not None and probe.status == "finding"


def _figure(probe: ProbeResult | None, name: str) -> float:
    value = probe.details.get(name) if probe is not None else None
    return float(value) if isinstance(value, (int, float)) else 0.0
