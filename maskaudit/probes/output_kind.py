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

import torch
from torch import Tensor

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, ProbeContext
from maskaudit.results import ProbeFinding
from maskaudit.target.kinds import UNDERFLOW_GAP, clipped_rows, output_kind, top_gap


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
    answers = context.target.raw(context.x)
    raw, kind = form.normal(answers), output_kind(answers, form)
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
