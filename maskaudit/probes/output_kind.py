"""Output kind: what the model's answers look like, and whether a float32 loss can use them

The outputs at the audited points are named: logits, probabilities, probabilities rounded
to steps, log-probabilities, one-hot answers, a constant, or logits clipped to a limit (the
same extreme value at 5 % of the points or more). The headline is the share of points whose output carries
no usable cross-entropy in float32: one-hot, constant or clipped rows, logits whose top two
lie more than 103.3 apart (exp underflows to 0), probabilities of which all but one are below
the smallest normal number.

Raised when
    More than 5 % of the points have such an output.

What it means
    Cross-entropy and its gradient are exactly flat there, whatever the decision
    underneath does. One-hot and saturated outputs blind score-based search as well,
    so that white-box and gradient-free attacks fail alike and seem to agree.

What to do
    Tap the logits before the last softmax, argmax or clip and attack these;
    divide scaled logits by a temperature; attack the margin; use decision-based
    attacks and transfer.

Source
    - Carlini & Wagner 2016, Defensive distillation is not robust to adversarial examples
    - Croce & Hein 2020, Reliable evaluation of adversarial robustness, section 4
    - IEEE 754: the smallest positive float32 is 2⁻¹⁴⁹, ln 2⁻¹⁴⁹ = −103.3; the smallest normal one is 2⁻¹²⁶
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, ProbeContext
from maskaudit.results import ProbeFinding
from maskaudit.target.kinds import PROBABILITY_TOLERANCE

#: Difference of logits (nats) beyond which exp(−gap) is 0 in float32.
UNDERFLOW_GAP = 149 * math.log(2)
#: Exact ties at the extreme value on at least this share of points: no unclipped float does that.
CLIP_SHARE = 0.05


def output_kind(raw: Tensor, *, coarse: bool = False) -> str:
    """Name what outputs (N, K) are, from their values; `coarse` probabilities are known to be rounded."""
    if len(raw) > 1 and bool((raw == raw[0]).all()):
        return "constant"
    if bool((((raw == 0) | (raw == 1)).all(dim=1) & (raw.sum(dim=1) == 1)).all()):
        return "one-hot"
    if coarse:
        return "rounded probabilities"
    if bool((raw >= 0).all()) and bool(((raw.sum(dim=1) - 1).abs() <= PROBABILITY_TOLERANCE).all()):
        return "probabilities"
    if bool((raw <= 0).all()) and bool(((raw.double().exp().sum(dim=1) - 1).abs() <= PROBABILITY_TOLERANCE).all()):
        return "log-probabilities"
    low, high = clipped_rows(raw)
    if max(float(low.double().mean()), float(high.double().mean())) >= CLIP_SHARE:
        return "clipped logits"
    gaps = top_gap(raw)
    return "scaled logits" if float(gaps.quantile(0.5)) > UNDERFLOW_GAP else "logits"


def top_gap(scores: Tensor) -> Tensor:
    """Largest less second largest entry per point (N,), float64."""
    top = scores.double().topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def clipped_rows(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N,) that hold the overall smallest, and the overall largest, value, where several rows do.

    Outputs that are the same for all points (a class fixed at 0) are not looked at.
    """
    varying = (raw != raw[0]).any(dim=0)
    if not bool(varying.any()):
        nothing = torch.zeros(len(raw), dtype=torch.bool, device=raw.device)
        return nothing, nothing
    values = raw[:, varying]
    low, high = (values == values.min()).any(dim=1), (values == values.max()).any(dim=1)
    return low & (low.sum() > 1), high & (high.sum() > 1)


def unusable(raw: Tensor, kind: str) -> Tensor:
    """Points (N,) whose output gives a float32 cross-entropy nothing to follow."""
    if kind in ("constant", "one-hot"):
        return torch.ones(len(raw), dtype=torch.bool, device=raw.device)
    if kind in ("probabilities", "rounded probabilities"):
        return raw.topk(2, dim=1).values[:, 1] < torch.finfo(torch.float32).tiny
    flat = top_gap(raw) > UNDERFLOW_GAP
    if kind == "clipped logits":
        top = raw.topk(2, dim=1).values
        ends = (top[:, 0] == raw.max()) & (top[:, 1] == raw.min())
        tied = (top[:, 0] == top[:, 1]) & ((top[:, 0] == raw.max()) | (top[:, 0] == raw.min()))
        return flat | ends | tied
    return flat


def measure(context: ProbeContext) -> Measurement:
    """Share of points whose output carries no usable float32 cross-entropy."""
    form, n = context.target.form, len(context.x)
    raw = form.normal(context.target.raw(context.x))
    kind = output_kind(raw, coarse=form.coarse)
    flat = unusable(raw, kind)
    count = int(flat.sum())
    gaps = top_gap(context.target.scores(context.x))
    low, high = clipped_rows(raw)
    return Measurement(
        count / n, "share of points", n, count=count,
        findings=(ProbeFinding(f"The outputs are {kind}; on {count} of {n} points they give no usable loss."),),
        details={
            "kind": kind,
            "classes": raw.shape[1],
            "median_top_two_gap": float(gaps.quantile(0.5)),
            "largest_top_two_gap": float(gaps.max()),
            "smallest_output": float(raw.min()),
            "largest_output": float(raw.max()),
            "points_at_lower_clip": int(low.sum()),
            "points_at_upper_clip": int(high.sum()),
        },
        per_point=tuple(flat.double().tolist()),
    )  # fmt: skip


PROBE = documented_probe("output-kind", measure, needs=(), docstring=__doc__)
