"""Losses that gradient attacks ascend, per point.

All take scores (N, K) and labels (N,) and return (N,); larger means closer to
(or deeper into) misclassification. K ≥ 2 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.target import Objective
from maskaudit.target.scores import breaking_margin

Loss = Literal["ce", "margin", "dlr", "rescaled", "targeted-margin", "targeted-dlr", "label-term", "other-term"]

#: Top-two gap to which `rescaled` brings every point at its start: softmax is then far from
#: saturation (p of the runner-up ≥ 0.1 of p of the winner), whatever the logit scale.
RESCALED_GAP = 2.0


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """−log softmax(scores)_y, the cross-entropy of each point."""
    return F.cross_entropy(scores, y, reduction="none")


def margin(scores: Tensor, y: Tensor, reject_class: int | None = None) -> Tensor:
    """max_{j≠y} z_j − z_y (Carlini & Wagner 2017, loss f₆); positive exactly when the point is broken."""
    return breaking_margin(scores, y, reject_class)


def label_term(scores: Tensor, y: Tensor) -> Tensor:
    """−z_y, the first term of the margin (Ma et al. 2020, "Imbalanced gradients", section 4, margin decomposition)."""
    return -scores.gather(1, y[:, None]).squeeze(1)


def other_term(scores: Tensor, y: Tensor, reject_class: int | None = None) -> Tensor:
    """max_{j≠y} z_j, the second term of the margin; a class that means a refusal is left out."""
    wrong = scores.scatter(1, y[:, None], -torch.inf)
    if reject_class is not None:
        wrong[:, reject_class] = -torch.inf
    return wrong.amax(dim=1)


def dlr(scores: Tensor, y: Tensor) -> Tensor:
    """Difference-of-logits ratio (Croce & Hein 2020, eq. 6): margin over (z_π1 − z_π3).

    Two classes have no third logit; the ratio is then constant, so the plain margin is used instead.
    """
    if scores.shape[1] < 3:
        return margin(scores, y)
    top = scores.topk(3, dim=1).values
    return margin(scores, y) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def targeted_margin(scores: Tensor, y: Tensor, target_class: Tensor) -> Tensor:
    """z_t − z_y for a chosen wrong class t (N,)."""
    return (scores.gather(1, target_class[:, None]) - scores.gather(1, y[:, None])).squeeze(1)


def targeted_dlr(scores: Tensor, y: Tensor, target_class: Tensor) -> Tensor:
    """Targeted DLR (Croce & Hein 2020, eq. 7): (z_t − z_y) / (z_π1 − (z_π3 + z_π4)/2); fewer logits where K < 4."""
    difference = targeted_margin(scores, y, target_class)
    k = scores.shape[1]
    if k < 3:
        return difference
    top = scores.topk(min(k, 4), dim=1).values
    tail = top[:, 2:].mean(dim=1)
    return difference / (top[:, 0] - tail).clamp_min(1e-12)


def start_scale(scores: Tensor) -> Tensor:
    """Factor per point (N,) of the logits, for cross-entropy: it brings the gap of the two largest to 2.

    `scores` (N, K) are those of the clean points. The idea is that of minimally-scaled logits (Yu & Xu 2023, "Efficient
    loss function by minimizing the detrimental effect of floating-point errors"); fixed per point, so that values stay
    comparable.
    """
    top = scores.topk(2, dim=1).values
    gap = (top[:, 0] - top[:, 1]).double()
    return (RESCALED_GAP / gap.clamp_min(1e-30)).clamp(1e-30, 1e30)


def wrong_class(scores: Tensor, y: Tensor, rank: int | Tensor, reject_class: int | None = None) -> Tensor:
    """The wrong class with the `rank`-th largest score (0 = runner-up), wrapping round; (N,), as a `rank` per point."""
    masked = scores.scatter(1, y[:, None], -torch.inf)
    available = scores.shape[1] - 1
    if reject_class is not None:
        masked[:, reject_class] = -torch.inf
        available = max(available - 1, 1)
    order = masked.argsort(dim=1, descending=True, stable=True)
    if isinstance(rank, Tensor):
        return order.gather(1, (rank % available)[:, None]).squeeze(1)
    return order[:, rank % available]


def build_objective(
    loss: Loss, y: Tensor, clean_scores: Tensor, *, target_rank: int | Tensor = 0, reject_class: int | None = None
) -> Objective:
    """The objective (scores (B, K), rows (B,)) → (B,) for points with labels `y` (N,) and clean scores (N, K).

    Targeted losses aim at the wrong class of `target_rank`, one for all points or one per point (N,).
    """
    if loss == "ce":
        return lambda scores, rows: cross_entropy(scores, y[rows])
    if loss == "margin":
        return lambda scores, rows: margin(scores, y[rows], reject_class)
    if loss == "dlr":
        return lambda scores, rows: dlr(scores, y[rows])
    if loss == "label-term":
        return lambda scores, rows: label_term(scores, y[rows])
    if loss == "other-term":
        return lambda scores, rows: other_term(scores, y[rows], reject_class)
    if loss == "rescaled":
        scale = start_scale(clean_scores)
        return lambda scores, rows: cross_entropy(scores.double() * scale[rows, None], y[rows]).float()
    chosen = wrong_class(clean_scores, y, target_rank, reject_class)
    functions: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "targeted-margin": targeted_margin,
        "targeted-dlr": targeted_dlr,
    }
    function = functions[loss]
    return lambda scores, rows: function(scores, y[rows], chosen[rows])
