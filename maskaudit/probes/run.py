"""Run one probe: measure, add the interval, grade, and never crash.

What a probe cannot run on becomes `not_applicable` with its reason; any
exception, the audited model's included, becomes an `error` result.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from maskaudit.errors import MaskauditError, first_line
from maskaudit.probes.docs import Explanation, explanation
from maskaudit.probes.interface import Measurement, NotApplicable, Probe, ProbeContext
from maskaudit.results import Location, ProbeFinding, ProbeResult, plain
from maskaudit.rng import PointRNG, stream_seed
from maskaudit.target import Target
from maskaudit.target.preserve import seed_generators
from maskaudit.threat import ThreatModel
from maskaudit.verdict.limits import LIMITS, Limit
from maskaudit.verdict.statistics import clopper_pearson


@dataclass(frozen=True)
class ProbeTask:
    """One probe on points (N, …) with labels (N,), for an engine."""

    probe: Probe
    x: Tensor
    y: Tensor
    threat: ThreatModel
    rng: PointRNG

    def run(self, target: Target) -> ProbeResult:
        """As `run_probe`, with global random numbers of its own."""
        seed_generators(stream_seed(self.rng.key, self.probe.rule))
        return run_probe(self.probe, ProbeContext(target, self.x, self.y, self.threat, self.rng))

    def packed(self, result: ProbeResult) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `Task.packed`."""
        return {}, dataclasses.asdict(result)

    def unpacked(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> ProbeResult:
        """As `Task.unpacked`."""
        findings = tuple(ProbeFinding(f["message"], Location(**f["location"])) for f in plain["findings"])
        return ProbeResult(**{**plain, "sources": tuple(plain["sources"]), "findings": findings})

    def lost(self, reason: str) -> ProbeResult:
        """The result where it could not be run."""
        return ProbeResult(self.probe.rule, self.probe.title, "error", reason=reason, sources=self.probe.sources)


def run_probe(probe: Probe, context: ProbeContext) -> ProbeResult:
    """The graded result of one probe on the points of an open target; rates have a two-sided exact interval."""
    text = explanation(probe)
    started = time.perf_counter()
    try:
        _check_needs(probe, context)
        measurement = probe.measure(context)
        figures = _graded(probe.rule, measurement, LIMITS.get(probe.rule), text)
    except NotApplicable as reason:
        figures = {"status": "not_applicable", "reason": str(reason)}
    except Exception as error:  # a probe must not end the audit: the reader gets the reason instead
        figures = {"status": "error", "reason": _sentence(error)}
    return ProbeResult(
        rule=probe.rule, title=probe.title, sources=probe.sources, seconds=time.perf_counter() - started, **figures
    )


#: Probes that need nothing but a few answers.
FOR_BLACK_BOXES = ("output-kind",)


def _check_needs(probe: Probe, context: ProbeContext) -> None:
    if len(context.x) == 0:
        raise NotApplicable("There is no correctly classified point to measure on.")
    if getattr(context.target.model, "black_box", False) and (probe.needs or probe.rule not in FOR_BLACK_BOXES):
        raise NotApplicable("The model is a black box: nothing is asked of it but its answers to attacks.")
    if "attacks" in probe.needs and (not context.attacks or context.strong is None):
        raise NotApplicable("It compares attacks, and no attack has run.")
    if "module" in probe.needs and not isinstance(context.target.model, nn.Module):
        raise NotApplicable("The model is a plain callable, not a torch module, so its layers cannot be observed.")


def _graded(rule: str, measurement: Measurement, limit: Limit | None, text: Explanation) -> dict[str, Any]:
    """Status, interval, limit and texts of a measurement as keyword arguments of `ProbeResult`."""
    low = high = None
    if measurement.count is not None and measurement.n > 0:
        low, high = clopper_pearson(measurement.count, measurement.n)
    if not measurement.graded:
        limit = None
    raised = limit is not None and limit.exceeded(measurement.value, low)
    details = plain(measurement.details)
    if measurement.per_point:
        details["per_point"] = [value if math.isfinite(value) else None for value in measurement.per_point]
    return {
        "status": "finding" if raised else "pass",
        "value": float(measurement.value),
        "unit": measurement.unit,
        "low": low,
        "high": high,
        "n": measurement.n,
        "threshold": limit.value if limit is not None else None,
        "meaning": text.meaning,
        "remedy": text.remedy,
        "findings": measurement.findings if raised else (),
        "details": details,
    }


def _sentence(error: Exception) -> str:
    """An exception as one line for people; our own errors already are."""
    if isinstance(error, MaskauditError):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error)}".rstrip(": ")
