"""`maskaudit inspect`: what a trace saw, as plain data; no attack."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from maskaudit.repairs.blame import traced
from maskaudit.repairs.propose import propose
from maskaudit.report.inspection import place
from maskaudit.results import plain
from maskaudit.target import Target
from maskaudit.trace.records import Op, Trace

#: What an inspection gives of a trace as it is.
COPIED = ("cuts", "estimators", "functions", "randomness", "optimises", "batch_dependent", "forks", "shrinks")


def inspect_model(target: Target, x: Tensor, y: Tensor, *, eps: float | None = None) -> dict[str, Any]:
    """Trace a target on a few points and say what hides its gradient and what would be repaired.

    Args:
        target: the open target.
        x: inputs (N, …); y: labels (N,).
        eps: see `maskaudit.trace.trace_model`.

    Returns:
        Plain types: `gradient`, `output_kind`, `culprits`, `repairs`, `flow` (worst op first), `cuts`,
        `estimators`, `functions`, `randomness`, `optimises`, `batch_dependent`, `forks`, `shrinks`, `ops`, `points`,
        `kind`.
    """
    return inspection(traced(target, x, y, eps=eps))


def inspection(trace: Trace) -> dict[str, Any]:
    """A trace in the form of `inspect_model`."""
    document: dict[str, Any] = trace.to_dict()
    blamed = {culprit.op for culprit in trace.culprits}
    rows = sorted((op for op in trace.ops if op.flow is not None), key=lambda op: _badness(op, blamed), reverse=True)
    return plain({
        "kind": trace.kind,
        "points": trace.points,
        "output_kind": trace.output_kind,
        "gradient": document["health"],
        "culprits": document["culprits"],
        "repairs": [repair.to_dict() for repair in propose(trace)],
        "flow": [_row(op, op.index in blamed) for op in rows],
        **{name: document[name] for name in COPIED},
        "ops": len(trace.ops),
        "sentence": _sentence(trace),
    })  # fmt: skip


def _sentence(trace: Trace) -> str:
    if trace.health.constant and trace.healthy:
        return (
            f"The model gives all {trace.points} points the very same scores: it does not look at its input, as a "
            "network does whose last weights are zero, or whose signal is too small for its number type."
        )
    if trace.healthy and trace.health.poor and trace.estimators:
        where = place(vars(trace.estimators[0]))
        return (
            f"The gradient does not follow the model on {trace.points} points: the straight-through estimator in "
            f"{where} gives it the slope of a trend."
        )
    if trace.healthy and trace.health.poor:
        return f"The gradient does not follow the model on {trace.points} points, and no op was found that explains it."
    if trace.healthy:
        return f"Nothing hides the gradient of this model as far as {trace.points} points show."
    worst = trace.culprits[0]
    return f"Suspect: {worst.mechanism} in {place(vars(worst.location))}. {worst.sentence}"


def _badness(op: Op, blamed: set[int]) -> tuple[bool, float, float, float]:
    """Blamed ops first, then by share of points with zero or non-finite gradient, blocked units, attenuation."""
    flow = op.flow
    assert flow is not None
    attenuation = flow.norm_in / flow.norm_out if flow.norm_out > 0 else 0.0
    return op.index in blamed, flow.zero_share + flow.nonfinite_share, flow.blocked_share or 0.0, attenuation


def _row(op: Op, blamed: bool) -> dict[str, Any]:
    assert op.flow is not None
    return {"location": vars(op.location), "blamed": blamed, "index": op.index, **vars(op.flow)}
