"""Imbalanced margin: one term of the logit margin has a far larger gradient than the other

The margin is the score of the strongest wrong class less that of the true class;
scores of models that return probabilities are counted from the mean of their
logarithms, since softmax shifts them by a number that depends on all of them.
Per point, the Euclidean norms of the two gradients with respect to the input are
divided, the larger by the smaller. The headline is the median over the points at
which both are finite and not zero.

Raised when
    The median ratio is above 4. If the two gradients are perpendicular, that of the
    margin then lies within 14 degrees of the larger one.

What it means
    A step along the gradient moves one score and hardly touches the other. Attacks
    on cross-entropy or the margin can follow the loud term past examples that the
    quiet one leads to. Logit pairing and squeezing, and models trained against
    weak attacks, show this. It explains a gap between losses; without such a gap
    it accuses no model.

What to do
    Attack each term alone for the first half of the steps and the margin for the
    rest (margin decomposition), and use targeted losses.

Source
    - Ma et al. 2020, Imbalanced gradients: a subtle cause of overestimated adversarial robustness
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, NotApplicable, ProbeContext
from maskaudit.results import ProbeFinding
from maskaudit.target.form import SHARES
from maskaudit.target.model import Objective
from maskaudit.threat import per_point_norm

#: Outputs whose scores are shifted by one number per point, so that shares sum to 1; it is taken off again.
NORMALISED = (*SHARES, "log-probabilities")


def measure(context: ProbeContext) -> Measurement:
    """Median ratio of the gradient norms of the two terms."""
    target, y = context.target, context.y
    shifted = float(target.outputs in NORMALISED)

    def score(classes: Tensor) -> Objective:
        """The score of one class (N,) for each point."""
        return lambda scores, rows: (scores - scores.mean(dim=1, keepdim=True) * shifted).gather(
            1, classes[rows, None]
        )[:, 0]

    true = target.value_and_grad(context.x, score(y))
    rival = true.scores.scatter(1, y[:, None], -torch.inf).argmax(dim=1)
    wrong = target.value_and_grad(context.x, score(rival))
    held, sought = per_point_norm(true.grad.double()), per_point_norm(wrong.grad.double())
    usable = (held > 0) & (sought > 0) & torch.isfinite(held) & torch.isfinite(sought)
    n = int(usable.sum())
    if n == 0:
        raise NotApplicable("No point has a finite, non-zero gradient of both terms; see zero-gradient.")
    ratio = torch.maximum(held / sought, sought / held)
    median = float(ratio[usable].quantile(0.5))
    louder = float((held > sought)[usable].double().mean())
    return Measurement(
        median, "ratio (median over points)", n,
        findings=(
            ProbeFinding(
                f"The larger of the two gradients is {median:.1f} times the other at the median point; it is that of "
                f"the true class on {louder:.0%} of the points."
            ),
        ),
        details={
            "highest": float(ratio[usable].max()),
            "true_class_larger": louder,
            "no_gradient": len(y) - n,
        },
        per_point=tuple(torch.where(usable, ratio, torch.full_like(ratio, math.nan)).tolist()),
    )  # fmt: skip


PROBE = documented_probe("imbalanced-margin", measure, needs=("gradients",), docstring=__doc__)
