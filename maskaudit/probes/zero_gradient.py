"""Zero gradient: points where the input gradient is exactly zero or not finite

The gradient of cross-entropy with respect to the input is computed at every
audited point. A point counts when every entry is exactly 0, or any entry is NaN
or infinite. The same is counted for the logit margin, and it is noted when the
output is not connected to the input in the autograd graph at all.

Raised when
    More than 5 % of the points have no usable cross-entropy gradient.

What it means
    An attack that follows this gradient does not move from these points, so their
    survival says nothing about robustness. If the margin still has a gradient,
    the loss is at fault (logits too large); if not, an operation in the model is:
    rounding, argmax, a detached tensor, a custom backward pass, full saturation.

What to do
    Attack another loss (margin, DLR, rescaled logits), repair the operation that
    stops the gradient (straight-through or smooth backward), and add attacks that
    use no gradient.

Source
    - Athalye, Carlini & Wagner 2018, Obfuscated gradients give a false sense of security, section 3
    - Carlini et al. 2019, On evaluating adversarial robustness, section 5
    - Croce & Hein 2020, Reliable evaluation of adversarial robustness (the zero-gradient check of AutoAttack)
"""

from __future__ import annotations

import torch

from maskaudit.attacks.losses import cross_entropy, margin
from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, ProbeContext
from maskaudit.results import ProbeFinding
from maskaudit.target.fit import FEW, in_type
from maskaudit.trace.behaviour import useless, vanishes


def measure(context: ProbeContext) -> Measurement:
    """Share of points without a usable cross-entropy gradient."""
    target, y, n = context.target, context.y, len(context.x)
    loss = target.value_and_grad(context.x, lambda scores, rows: cross_entropy(scores, y[rows]))
    decision = target.value_and_grad(context.x, lambda scores, rows: margin(scores, y[rows], target.reject_class))
    zero, broken = useless(loss.grad)
    margin_zero, margin_broken = useless(decision.grad)
    lost = zero | broken
    count = int(lost.sum())
    margin_count = int((margin_zero | margin_broken).sum())
    connected = loss.connected and decision.connected
    findings = [ProbeFinding(f"Cross-entropy has no usable gradient on {count} of {n} points.")]
    single = _in_single(context) if count else None
    if single is not None:
        findings.append(
            ProbeFinding(
                f"In {target.form.dtype} the gradient is lost to rounding: on {count} of {n} points, in float32 on "
                f"{single} of {n}."
            )
        )
    if not connected and target.gradient_failure:
        findings.insert(0, ProbeFinding(f"The pass for the gradient fails. {target.gradient_failure}"))
    elif not connected:
        findings.insert(0, ProbeFinding("The output is not connected to the input in the autograd graph."))
    elif margin_count:
        findings.append(ProbeFinding(f"The logit margin has no usable gradient on {margin_count} of {n} points."))
    return Measurement(
        count / n, "share of points", n, count=count,
        findings=tuple(findings),
        details={
            "connected": connected,
            "useless_in_float32": single,
            "failure": target.gradient_failure,
            "zero": int(zero.sum()),
            "not_finite": int(broken.sum()),
            "zero_margin_share": margin_count / n,
            "margin_zero": int(margin_zero.sum()),
            "margin_not_finite": int(margin_broken.sum()),
        },
        per_point=tuple(lost.double().tolist()),
    )  # fmt: skip


def _in_single(context: ProbeContext) -> int | None:
    """Points without a usable gradient where a model of lower precision is computed in float32; None for others."""
    target, y = context.target, context.y
    if target.form.dtype not in ("float16", "bfloat16"):
        return None
    single = in_type(target, torch.float32, context.x[:FEW])
    if single is None:
        return None
    loss = single.value_and_grad(context.x, lambda scores, rows: cross_entropy(scores, y[rows]))
    return int(vanishes(loss.grad).sum())


PROBE = documented_probe("zero-gradient", measure, needs=("gradients",), docstring=__doc__)
