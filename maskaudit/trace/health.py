"""The input gradient as a whole, against central differences of the margin, and when that is decided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.attacks.losses import targeted_margin, wrong_class
from maskaudit.errors import GradientError
from maskaudit.rng import PointRNG
from maskaudit.target import Target, differentiate
from maskaudit.target.fit import FEW, in_type
from maskaudit.target.preserve import seed_generators
from maskaudit.trace.behaviour import correlation, loss_slope, twin, vanishes, zero_share
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
#: Rounding that a network may add to its scores, as a share of the largest (float32 has 2⁻²³; a few layers of it).
ROUNDING = 8 * 2.0**-23
#: Chance at which so many points without a gradient are put down to luck, if their share were `ZERO_SHARE`.
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
        grad = grad.where(torch.isfinite(grad).flatten(1).all(dim=1).view(-1, *[1] * (grad.dim() - 1)), 0.0)
    return Gradients(leaf.detach(), pair, grad, _flat(target, leaf, scores, y, slope, grad))


def further_gradients(target: Target, x: Tensor, y: Tensor) -> Gradients:
    """The same at inputs (N, …) and labels (N,) that no recorded pass has seen."""
    leaf = x.clone().requires_grad_(True)
    seed_generators(target.seed)
    with torch.enable_grad():
        scores = twin(target).differentiable_scores(leaf)
    pair = deciding_pair(target, scores, y)
    grad = margin_gradient(target, leaf, scores, pair)
    return gradients(target, leaf, scores, y, pair=pair, slope=loss_slope(scores, y), grad=grad)


def margin_gradient(target: Target, leaf: Tensor, scores: Tensor, pair: Tensor) -> Tensor | None:
    """Gradient (N, …) of `lead`; the graph is kept. None where there is none, or an op has no derivative."""
    return _gradient(target, lead(scores, pair), leaf)


def deciding_pair(target: Target, scores: Tensor, y: Tensor) -> Tensor:
    """The two classes (N, 2) between which the margin lies at scores (N, K): the runner-up, and the label."""
    return torch.stack([wrong_class(scores.detach(), y, 0, target.reject_class), y], dim=1)


def lead(scores: Tensor, pair: Tensor) -> Tensor:
    """The margin (N,), as long as the same two classes (N, 2) decide.

    Where a third comes level it has a kink, which is no fault of the gradient.
    """
    runner_up, label = pair.unbind(dim=1)
    return targeted_margin(scores, label, runner_up)


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
            has to be clear of `AGREEMENT` for the round to be left out.
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


@dataclass
class _Scale:
    """Changes of the margin over 2 × `step`, in input units: as the gradient predicts them, and as they are (M,).

    `floor` (M,) is the rounding that such a change may be made of. `points` holds, per direction, how many points were
    compared along it: the first ones.
    """

    step: float
    predicted: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    measured: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    floor: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    correlation: float = 0.0
    points: list[int] = field(default_factory=list)

    def add(self, predicted: Tensor, measured: Tensor, largest: Tensor) -> None:
        """Take in further pairs (M,), with the largest score of each, and correlate all of them."""
        self.predicted = torch.cat([self.predicted, predicted.to(self.predicted)])
        self.measured = torch.cat([self.measured, measured.to(self.measured)])
        self.floor = torch.cat([self.floor, ROUNDING * largest.to(self.floor)])
        self.correlate(torch.ones_like(self.floor, dtype=torch.bool))

    def correlate(self, counted: Tensor) -> None:
        """Uncentred, over the pairs (M,) that are counted; 1 when nothing changes and nothing should."""
        counted = counted & torch.isfinite(self.predicted) & torch.isfinite(self.measured)
        found = correlation(self.predicted[counted], self.measured[counted])
        self.correlation = 1.0 if found is None else found

    def side(self, by: float = CLEAR_BY) -> int:
        """See `clear_side`."""
        return clear_side(self.correlation, len(self.predicted), by)

    def missing(self, directions: int, points: int) -> Iterator[tuple[int, int]]:
        """The directions along which fewer than `points` were compared, and the first point that was not; now taken."""
        self.points += [0] * (directions - len(self.points))
        for direction in range(directions):
            first, self.points[direction] = self.points[direction], max(points, self.points[direction])
            if first < points:
                yield direction, first


class Differences:
    """Directional derivatives of the margin and central differences, at every step size.

    Args:
        eps: radius, in input units.
        again: how many points are answered once more, unmoved, in the pass of the first comparison.

    Attributes:
        answered: their scores (`again`, K); None as long as nothing was compared, or none are to be.
    """

    def __init__(self, eps: float, *, again: int = 0) -> None:
        self.eps = eps
        self.scales = [_Scale(eps * step) for step in DIFFERENCE_STEPS]
        self.answered: Tensor | None = None
        self._again = again

    def poor(self) -> bool:
        """Whether a correlation, as it is now, says that the gradient does not predict the model."""
        return any(len(scale.predicted) and scale.correlation < AGREEMENT for scale in self.scales)

    def leave_out_rounding(self) -> None:
        """Correlate without the pairs of which neither side is more than rounding: they say nothing.

        A network that computes in float32 inside, whatever it is given, shows its rounding in any type.
        """
        for scale in self.scales:
            scale.correlate(torch.maximum(scale.predicted.abs(), scale.measured.abs()) > scale.floor)

    def unclear(self, by: float) -> list[_Scale]:
        """The step sizes that could still turn the finding: none where one is surely poor, since the worst counts.

        Where one is likely to be poor, only that one is worth pursuing.
        """
        if any(scale.side(by) < 0 for scale in self.scales):
            return []
        left = [scale for scale in self.scales if scale.side(by) == 0]
        poor = [scale for scale in left if scale.side() < 0]
        return [min(poor, key=lambda scale: scale.correlation)] if poor else left

    def extend(
        self, target: Target, x: Tensor, pair: Tensor, grad: Tensor, directions: int, scales: list[_Scale], *,
        together: bool,
    ) -> None:  # fmt: skip
        """Compare `grad` (N, …), the gradient of `lead` at `x` (N, …), until it was along so many directions.

        At the given step sizes, `together` in one pass, or in one per side under the same random numbers.
        """
        wanted = [(scale, *missing) for scale in scales for missing in scale.missing(directions, len(x))]
        if not wanted:
            return
        rng = PointRNG.create(target.seed, "trace directions", torch.arange(len(x)))
        signs = {
            (direction, first): rng.select(slice(first, None)).signs(x.shape[1:], step=direction).to(x)
            for direction, first in {(direction, first) for _, direction, first in wanted}
        }
        low, high = target.bounds
        moves = [(x[first:], scale.step * signs[direction, first]) for scale, direction, first in wanted]
        around = [side.clamp_(low, high) for points, move in moves for side in (points + move, points - move)]
        pairs = [pair[first:] for _, _, first in wanted for _ in (1, -1)]
        again = [x[: self._again]] if self._again and self.answered is None else []
        scores = _scores(twin(target), [*around, *again], together=together)
        if again:
            self.answered = scores.pop()
        sizes = [len(batch) for batch in around]
        margins = lead(torch.cat(scores), torch.cat(pairs)).split(sizes)
        largest = torch.cat(scores).abs().amax(dim=1).split(sizes)
        for place, (scale, _, first) in enumerate(wanted):
            (plus, minus), (up, down) = around[2 * place : 2 * place + 2], margins[2 * place : 2 * place + 2]
            predicted = ((plus - minus).double() * grad[first:]).flatten(1).sum(dim=1)  # float32 may underflow
            scale.add(predicted, up - down, largest[2 * place])


def clear_side(correlation: float, pairs: int, by: float = CLEAR_BY) -> int:
    """Whether a correlation over so many pairs is surely above (1) or below (−1) `AGREEMENT`; 0 if neither.

    `by` is the number of standard errors that counts as sure.
    """
    if pairs <= 3:
        return 0
    bounded = max(-1 + 1e-12, min(1 - 1e-12, correlation))
    distance = (math.atanh(bounded) - math.atanh(AGREEMENT)) * math.sqrt(pairs - 3)
    return (distance >= by) - (distance <= -by)


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


def _scores(target: Target, batches: list[Tensor], *, together: bool) -> list[Tensor]:
    """Scores (N, K) of batches: in one pass, or each in its own under the same random numbers."""
    if together:
        seed_generators(target.seed)
        return list(target.scores(torch.cat(batches)).split([len(batch) for batch in batches]))
    scores = []
    for batch in batches:
        seed_generators(target.seed)
        scores.append(target.scores(batch))
    return scores
