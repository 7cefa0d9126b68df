"""Loss-decision gradient ratio: how much smaller the loss gradient is than the decision's

Per point, log10(‖∇ cross-entropy‖₂ / ‖∇ margin‖₂), gradients with respect to the
input. Both point at the same weakness; cross-entropy's carries the factor
1 − p_y besides, so the ratio falls as the logits grow. Where float32 gives an
exactly zero cross-entropy gradient where there is a margin gradient that is not zero,
the factor is computed in double precision from the scores, as the difference of two
log-sum-exps, and replaces the ratio: an underflow is thus distinguished from a gradient that is
really zero. The headline is the median over the points with a margin gradient.

Raised when
    The median ratio is below 2⁻²⁴ (log10 ≈ −7.2): 1 − p_y is then lost next to 1 in
    float32.

What it means
    The usual loss has gone flat though the decision has not: an attack on
    cross-entropy follows rounding noise, or nothing, on most points. Distillation,
    scaled logits and logit drift do this. A small ratio above the limit is
    ordinary for a confident model and accuses no model.

What to do
    Attack the margin, the difference-of-logits ratio, or cross-entropy of logits
    divided by a temperature, in addition to plain cross-entropy.

Source
    - Carlini & Wagner 2017, Towards evaluating the robustness of neural networks, section IV
    - Croce & Hein 2020, Reliable evaluation of adversarial robustness, section 4
    - Yu & Xu 2023, Efficient loss function by minimizing the detrimental effect of floating-point errors
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskaudit.attacks.losses import cross_entropy, margin
from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, NotApplicable, ProbeContext
from maskaudit.results import ProbeFinding
from maskaudit.threat import per_point_norm
from maskaudit.verdict.limits import LOG_RATIO
from maskaudit.verdict.numerals import power


def log10_doubt(scores: Tensor, y: Tensor) -> Tensor:
    """log10(1 − p_y) per point (N,), float64, from scores (N, K); finite for finite scores however large."""
    scores = scores.double()
    others = scores.scatter(1, y[:, None], -torch.inf)
    return (others.logsumexp(dim=1) - scores.logsumexp(dim=1)) / math.log(10)


def measure(context: ProbeContext) -> Measurement:
    """Median log10 ratio of loss to decision gradient."""
    target, y = context.target, context.y
    loss = target.value_and_grad(context.x, lambda scores, rows: cross_entropy(scores, y[rows]))
    decision = target.value_and_grad(context.x, lambda scores, rows: margin(scores, y[rows], target.reject_class))
    above, below = per_point_norm(loss.grad.double()), per_point_norm(decision.grad.double())
    comparable = (below > 0) & torch.isfinite(below) & torch.isfinite(above)
    n = int(comparable.sum())
    if n == 0:
        raise NotApplicable("No point has a finite, non-zero margin gradient to compare with; see zero-gradient.")
    doubt = log10_doubt(loss.scores, y)
    underflow = comparable & (above == 0) & torch.isfinite(doubt)
    measured = torch.log10(above.clamp_min(1e-300)) - torch.log10(below.clamp_min(1e-300))
    ratio = torch.where(underflow, doubt, measured)
    dual = _median_log_ratio(context.threat.dual_norm(loss.grad.double()), context.threat.dual_norm(
        decision.grad.double()), comparable & ~underflow)  # fmt: skip
    ratios = ratio[comparable]
    median = float(ratios.quantile(0.5))
    lost = comparable & (doubt <= LOG_RATIO)
    return Measurement(
        median, "log10 (median over points)", n,
        findings=(
            ProbeFinding(
                f"The cross-entropy gradient is {power(median)} times the margin gradient at the median point; "
                f"it underflowed to exactly zero on {int(underflow.sum())} of {n} points."
            ),
        ),
        details={
            "dual_norm_median": dual,
            "lowest": float(ratios.min()),
            "highest": float(ratios.max()),
            "underflow": int(underflow.sum()),
            "true_class_term_lost": int(lost.sum()),
            "no_margin_gradient": len(y) - n,
            "log10_one_minus_p_median": float(doubt.quantile(0.5)),
        },
        per_point=tuple(torch.where(comparable, ratio, torch.full_like(ratio, math.nan)).tolist()),
    )  # fmt: skip


def _median_log_ratio(above: Tensor, below: Tensor, rows: Tensor) -> float | None:
    """Median of log10(above / below) over `rows` (bool (N,)); None when there are none."""
    if not bool(rows.any()):
        return None
    return float((torch.log10(above[rows].clamp_min(1e-300)) - torch.log10(below[rows])).quantile(0.5))


PROBE = documented_probe("loss-decision-gradient-ratio", measure, needs=("gradients",), docstring=__doc__)
