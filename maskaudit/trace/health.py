"""The input gradient as a whole: where it vanishes, whether it follows the model, and when that is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.attacks.losses import wrong_class
from maskaudit.errors import GradientError
from maskaudit.sums import column
from maskaudit.target import Target, differentiate
from maskaudit.target.fit import FEW, in_type
from maskaudit.target.preserve import seed_generators
from maskaudit.trace.behaviour import copy_of, loss_slope, vanishes, zero_share
from maskaudit.trace.differences import Differences, clear_side, lead
from maskaudit.trace.records import GradientHealth
from maskaudit.verdict.limits import ZERO_GRADIENT_SHARE
from maskaudit.verdict.statistics import binomial_tail

#: Derivatives of cross-entropy and gradients of the margin above this cannot underflow in float32 when multiplied.
NO_UNDERFLOW = 1e-12
#: Chance at which so many points without a gradient are put down to luck, if their share were `ZERO_GRADIENT_SHARE`.
LUCK = 0.01


@dataclass(frozen=True)
class Gradients:
    """What a backward pass gave at inputs `x` (N, …).

    `pair` (N, 2) are the two classes between whose scores the margin lies at `x`, `grad` (N, …) is its gradient, None
    where the model gives none; `flat` (N,) says where that of cross-entropy is exactly zero.
    """

    x: Tensor
    pair: Tensor
    grad: Tensor | None
    flat: Tensor

    def __add__(self, more: Gradients) -> Gradients:
        """Those at further inputs behind these; where only one of the two passes gave a gradient, the other is zero."""
        grad = None
        if self.grad is not None or more.grad is not None:
            grad = torch.cat([torch.zeros_like(g.x) if g.grad is None else g.grad for g in (self, more)])
        return Gradients(
            torch.cat([self.x, more.x]), torch.cat([self.pair, more.pair]), grad, torch.cat([self.flat, more.flat])
        )


def gradients(
    target: Target, leaf: Tensor, scores: Tensor, y: Tensor, *, pair: Tensor, slope: Tensor, grad: Tensor | None
) -> Gradients:
    """Take down `grad` (N, …), the gradient of the margin, and see where that of cross-entropy is exactly zero.

    Args:
        target: the open target.
        leaf: inputs (N, …); scores: (N, K), on their graph; y: labels (N,).
        pair: their `deciding_pair` (N, 2).
        slope: derivative (N, K) of cross-entropy with respect to the scores.
        grad: what a backward pass of the margin gave, or None.
    """
    if grad is not None and not bool(torch.isfinite(grad).all()):  # leads nowhere, as a gradient of zero does
        grad = grad.where(column(torch.isfinite(grad).flatten(1).all(dim=1), grad), 0.0)
    return Gradients(leaf.detach(), pair, grad, _flat(target, leaf, scores, y, slope, grad))


def further_gradients(target: Target, x: Tensor, y: Tensor) -> Gradients:
    """The same at inputs (N, …) and labels (N,) that no recorded pass has seen."""
    leaf = x.clone().requires_grad_(True)
    seed_generators(target.seed)
    with torch.enable_grad():
        scores = copy_of(target).differentiable_scores(leaf)
    pair = deciding_pair(target, scores, y)
    grad = margin_gradient(target, leaf, scores, pair)
    return gradients(target, leaf, scores, y, pair=pair, slope=loss_slope(scores, y), grad=grad)


def margin_gradient(target: Target, leaf: Tensor, scores: Tensor, pair: Tensor) -> Tensor | None:
    """Gradient (N, …) of `lead`; the graph is kept. None where there is none, or an op has no derivative."""
    return _gradient(target, lead(scores, pair), leaf)


def deciding_pair(target: Target, scores: Tensor, y: Tensor) -> Tensor:
    """The two classes (N, 2) between which the margin lies at scores (N, K): the runner-up, and the label."""
    return torch.stack([wrong_class(scores.detach(), y, 0, target.reject_class), y], dim=1)


def gradient_health(
    target: Target, found: Gradients, differences: Differences, *, rounds: Sequence[tuple[int, float]],
    together: bool = True,
) -> GradientHealth:  # fmt: skip
    """Zero shares, and correlation of ⟨∇margin, u⟩ with central differences over random sign directions u.

    A gradient that vanishes at every point predicts nothing, and is compared with nothing.

    Args:
        target: the open target.
        found: the gradients to judge.
        differences: what an earlier look at the first of these points compared; what is compared now is added.
        rounds: how many directions every point is compared along by then, and by how many standard errors a correlation
            has to be clear of `TRACE_AGREEMENT` for the round to be left out.
        together: whether all may be asked in one pass; else each side is, under the same random numbers, so that a
            random model is judged as one draw.
    """
    zero = 1.0 if found.grad is None else zero_share(found.grad)
    flat = float(found.flat.double().mean())
    if found.grad is None or zero == 1:
        nothing = tuple((scale.step, 0.0) for scale in differences.scales)
        return GradientHealth(found.grad is not None, zero, flat, nothing, pairs=(0, 0))
    for directions, clear_by in rounds:
        scales = differences.unclear(clear_by)
        differences.extend(target, found.x, found.pair, found.grad, directions, scales, together=together)
    if together and differences.poor():
        differences = _exactly(target, found, found.grad, differences, rounds[0][0])
        if differences.poor():
            differences.leave_out_rounding()
    agreement = tuple((scale.step, scale.correlation) for scale in differences.scales)
    pairs = tuple(len(scale.predicted) for scale in differences.scales)
    return GradientHealth(True, zero, flat, agreement, pairs)


def _exactly(target: Target, found: Gradients, grad: Tensor, differences: Differences, directions: int) -> Differences:
    """The comparison once more with differences taken in float64, where the model allows it and that is better.

    Small changes of large scores drown in the rounding of float32, which is no fault of the gradient.
    """
    exact = in_type(target, torch.float64, found.x[:FEW])
    if exact is None:
        return differences
    again = Differences(differences.eps)
    again.extend(exact, found.x, found.pair, grad, directions, again.scales, together=True)
    return differences if again.poor() else again


def surely_common(share: float, points: int) -> bool:
    """Whether the share of points without a gradient is above `ZERO_GRADIENT_SHARE`, and not by luck."""
    return binomial_tail(round(share * points), points, ZERO_GRADIENT_SHARE) <= LUCK


def surely_poor(health: GradientHealth, points: int) -> bool:
    """Whether more points or directions could not turn the finding that the gradient is of little use."""
    if not health.connected or surely_common(max(health.zero_share, health.ce_zero_share), points):
        return True
    return any(side < 0 for side in _sides(health))


def surely_good(health: GradientHealth) -> bool:
    """Whether more points or directions would hardly turn the finding that the gradient is healthy."""
    clean = health.connected and health.zero_share == 0 and health.ce_zero_share == 0
    return clean and all(side > 0 for side in _sides(health))


def _sides(health: GradientHealth) -> list[int]:
    return [clear_side(value, pairs) for (_, value), pairs in zip(health.agreement, health.pairs, strict=True)]


def _flat(target: Target, leaf: Tensor, scores: Tensor, y: Tensor, slope: Tensor, margin: Tensor | None) -> Tensor:
    """Where (N,) the gradient of cross-entropy is exactly zero; no pass is spent where it cannot be."""
    if margin is None:
        return torch.ones(len(leaf), dtype=torch.bool)
    safe = float(slope.abs().amax(dim=1).min()) > NO_UNDERFLOW
    if safe and float(margin.flatten(1).abs().amax(dim=1).min()) > NO_UNDERFLOW:
        return torch.zeros(len(leaf), dtype=torch.bool)
    grad = _gradient(target, F.cross_entropy(scores, y, reduction="none"), leaf)
    return torch.ones(len(leaf), dtype=torch.bool) if grad is None else vanishes(grad).cpu()


def _gradient(target: Target, value: Tensor, leaf: Tensor) -> Tensor | None:
    """Gradient of a sum with respect to the input, counted in the target's ledger; the graph is kept."""
    if not value.requires_grad:
        return None
    target.count_backward(len(leaf))
    try:
        (grad,) = differentiate(value.sum(), (leaf,), retain_graph=True)
    except GradientError:
        return None
    return None if grad is None else grad.detach()
