"""Directional derivatives of the margin against central differences, along random directions, at several step sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maskaudit.attacks.losses import targeted_margin
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.preserve import seed_generators
from maskaudit.trace.behaviour import copy_of, correlation
from maskaudit.verdict.limits import TRACE_AGREEMENT

#: Step sizes of the central differences, in units of ε: the smaller one sees ripples, the larger one what an
#: attack's step would gain.
DIFFERENCE_STEPS = (0.25, 1 / 16)
#: Standard errors of Fisher's z (1/√(n−3) for n pairs; Fisher 1921) by which a correlation must be clear of
#: `TRACE_AGREEMENT` before no more directions are drawn: 3.6 % one-sided. With 16 pairs that is .95 from above and .68
#: from below.
CLEAR_BY = 1.8
#: Rounding that a network may add to its scores, as a share of the largest (float32 has 2⁻²³; a few layers of it).
ROUNDING = 8 * 2.0**-23


def lead(scores: Tensor, pair: Tensor) -> Tensor:
    """The margin (N,), as long as the same two classes (N, 2) decide.

    Where a third comes level it has a kink, which is no fault of the gradient.
    """
    runner_up, label = pair.unbind(dim=1)
    return targeted_margin(scores, label, runner_up)


@dataclass
class Scale:
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
        """On which side of the limit the correlation clearly lies; see `clear_side`."""
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
        self.scales = [Scale(eps * step) for step in DIFFERENCE_STEPS]
        self.answered: Tensor | None = None
        self._again = again

    def poor(self) -> bool:
        """Whether a correlation, as it is now, says that the gradient does not predict the model."""
        return any(len(scale.predicted) and scale.correlation < TRACE_AGREEMENT for scale in self.scales)

    def leave_out_rounding(self) -> None:
        """Correlate without the pairs of which neither side is more than rounding: they say nothing.

        A network that computes in float32 inside, whatever it is given, shows its rounding in any type.
        """
        for scale in self.scales:
            scale.correlate(torch.maximum(scale.predicted.abs(), scale.measured.abs()) > scale.floor)

    def unclear(self, by: float) -> list[Scale]:
        """The step sizes that could still turn the finding: none where one is surely poor, since the worst counts.

        Where one is likely to be poor, only that one is worth pursuing.
        """
        if any(scale.side(by) < 0 for scale in self.scales):
            return []
        left = [scale for scale in self.scales if scale.side(by) == 0]
        poor = [scale for scale in left if scale.side() < 0]
        return [min(poor, key=lambda scale: scale.correlation)] if poor else left

    def extend(
        self, target: Target, x: Tensor, pair: Tensor, grad: Tensor, directions: int, scales: list[Scale], *,
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
        scores = _scores(copy_of(target), [*around, *again], together=together)
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
    """Whether a correlation over so many pairs is surely above (1) or below (−1) `TRACE_AGREEMENT`; 0 if neither.

    `by` is the number of standard errors that counts as sure.
    """
    if pairs <= 3:
        return 0
    bounded = max(-1 + 1e-12, min(1 - 1e-12, correlation))
    distance = (math.atanh(bounded) - math.atanh(TRACE_AGREEMENT)) * math.sqrt(pairs - 3)
    return (distance >= by) - (distance <= -by)


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
