"""The input gradient as a whole, against central differences of the margin, and when that is decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.trace.behaviour import seed_generators, twin, zero_share
from maskaudit.trace.records import GradientHealth
from maskaudit.trace.vocabulary import AGREEMENT, ZERO_SHARE

#: Step sizes of the central differences, in units of ε: the smaller one sees ripples, the larger one what an
#: attack's step would gain.
DIFFERENCE_STEPS = (0.25, 1 / 16)
#: Derivatives of cross-entropy and gradients of the margin above this cannot underflow in float32 when multiplied.
NO_UNDERFLOW = 1e-12
#: Standard errors of Fisher's z (1/√(n−3) for n pairs; Fisher 1921) by which a correlation must be clear of `AGREEMENT`
#: before no more directions are drawn: 3.6 % one-sided. With 16 pairs that is .95 from above and .68 from below.
CLEAR_BY = 1.8
#: Chance at which so many points without a gradient are put down to luck, if their share were `ZERO_SHARE`.
LUCK = 0.01


@dataclass(frozen=True)
class Pass:
    """One recorded pass: the input leaf (N, …), the scores (N, K) on its graph, and the gradient of the margin (N, …).

    `slope` (N, K) is the derivative of cross-entropy with respect to the scores; `margin_grad` is None where the model
    gives none; `random` says whether another pass may answer otherwise.
    """

    leaf: Tensor
    scores: Tensor
    slope: Tensor
    margin_grad: Tensor | None
    random: bool


def margin_gradient(target: Target, leaf: Tensor, scores: Tensor, y: Tensor) -> Tensor | None:
    """Gradient (N, …) of the logit margin; the graph is kept. None where there is none, or an op has no derivative."""
    return _gradient(target, target.margin(scores, y), leaf)


def gradient_health(target: Target, seen: Pass, y: Tensor, eps: float, *, rounds: Sequence[int]) -> GradientHealth:
    """Zero shares, and correlation of ⟨∇margin, u⟩ with central differences over random sign directions u.

    Args:
        target: the open target.
        seen: the recorded pass.
        y: labels (N,).
        eps: radius, in input units.
        rounds: how many directions per point to add at a time; none are added once the correlation is clear of
            `AGREEMENT` at a step size, on whichever side.

    Every evaluation of a random model uses the same random numbers, so it is judged as one draw.
    """
    grad = seen.margin_grad
    if grad is None:
        return GradientHealth(False, 1.0, 1.0, tuple((eps * s, 0.0) for s in DIFFERENCE_STEPS), pairs=(0, 0))
    shares = zero_share(grad), _entropy_zero_share(target, seen, y, grad)
    rng = PointRNG.create(target.seed, "trace directions", torch.arange(len(y)))
    scales = [_Scale(eps * step) for step in DIFFERENCE_STEPS]
    drawn = 0
    for count in rounds:
        open_scales = [scale for scale in scales if not scale.clear]
        if not open_scales:
            break
        order = torch.arange(drawn, drawn + count).expand(len(y), count)
        signs = rng.signs(seen.leaf.shape[1:], step=order).to(seen.leaf).unbind(dim=1)
        _add_differences(target, seen, y, grad, signs, open_scales)
        drawn += count
    agreement = tuple((scale.step, scale.correlation) for scale in scales)
    return GradientHealth(True, *shares, agreement, tuple(len(scale.predicted) for scale in scales))


@dataclass
class _Scale:
    """Changes of the margin over 2 × `step`, in input units: as the gradient predicts them, and as they are (M,)."""

    step: float
    predicted: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    measured: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    correlation: float = 0.0
    clear: bool = False

    def add(self, predicted: Tensor, measured: Tensor) -> None:
        """Take in further pairs and correlate all of them, uncentred; 1 when nothing changes and nothing should."""
        self.predicted = torch.cat([self.predicted, predicted.double().to(self.predicted)])
        self.measured = torch.cat([self.measured, measured.double().to(self.measured)])
        finite = torch.isfinite(self.predicted) & torch.isfinite(self.measured)
        p, m = self.predicted[finite], self.measured[finite]
        lengths = float(p.norm()), float(m.norm())
        scale = lengths[0] * lengths[1]
        self.correlation = float(p @ m) / scale if scale else float(lengths[0] == lengths[1])
        self.clear = clear_side(self.correlation, len(self.predicted)) != 0


def clear_side(correlation: float, pairs: int) -> int:
    """Whether a correlation over so many pairs is surely above (1) or below (−1) `AGREEMENT`; 0 if neither."""
    if pairs <= 3:
        return 0
    bounded = max(-1 + 1e-12, min(1 - 1e-12, correlation))
    distance = (math.atanh(bounded) - math.atanh(AGREEMENT)) * math.sqrt(pairs - 3)
    return (distance >= CLEAR_BY) - (distance <= -CLEAR_BY)


def surely_common(share: float, points: int) -> bool:
    """Whether so many of the points are without a gradient that their share is above `ZERO_SHARE`, not by luck."""
    fewest = round(share * points)
    fewer = sum(math.comb(points, k) * ZERO_SHARE**k * (1 - ZERO_SHARE) ** (points - k) for k in range(fewest))
    return 1 - fewer <= LUCK


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


def _entropy_zero_share(target: Target, seen: Pass, y: Tensor, margin: Tensor) -> float:
    """Share of points where the gradient of cross-entropy is exactly zero; no pass is spent where none can be."""
    safe = float(seen.slope.abs().amax(dim=1).min()) > NO_UNDERFLOW
    if safe and float(margin.flatten(1).abs().amax(dim=1).min()) > NO_UNDERFLOW:
        return 0.0
    grad = _gradient(target, F.cross_entropy(seen.scores, y, reduction="none"), seen.leaf)
    return 1.0 if grad is None else zero_share(grad)


def _gradient(target: Target, value: Tensor, leaf: Tensor) -> Tensor | None:
    """Gradient of a sum with respect to the input, counted in the target's ledger; the graph is kept."""
    if not value.requires_grad:
        return None
    target.count_backward(len(leaf))
    try:
        (grad,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)
    except RuntimeError:  # an op without derivative: forward works, backward raises
        return None
    return None if grad is None else grad.detach()


def _add_differences(
    target: Target, seen: Pass, y: Tensor, grad: Tensor, directions: Sequence[Tensor], scales: Sequence[_Scale]
) -> None:
    """Add the changes of the margin between x + hu and x − hu for every direction u and step size h."""
    x = seen.leaf.detach()
    low, high = target.bounds
    around = [(x + side * scale.step * u).clamp(low, high) for scale in scales for side in (1, -1) for u in directions]
    margins = torch.cat(_margins(twin(target), around, y, together=not seen.random))
    slopes = grad.repeat(len(directions), *[1] * (grad.dim() - 1))
    points, values = torch.cat(around).split(2 * len(slopes)), margins.split(2 * len(slopes))
    for scale, around_scale, margin in zip(scales, points, values, strict=True):
        plus, minus = around_scale.chunk(2)
        predicted = ((plus - minus) * slopes).flatten(1).sum(dim=1, dtype=torch.float64)
        up, down = margin.chunk(2)
        scale.add(predicted, up - down)


def _margins(target: Target, batches: list[Tensor], y: Tensor, *, together: bool) -> list[Tensor]:
    """Margins (N,) of equally large batches: in one pass, or each in its own under the same random numbers."""
    if together:
        seed_generators(target.seed)
        scores = target.scores(torch.cat(batches))
        return list(target.margin(scores, y.repeat(len(batches))).split(len(y)))
    margins = []
    for batch in batches:
        seed_generators(target.seed)
        margins.append(target.margin(target.scores(batch), y))
    return margins
