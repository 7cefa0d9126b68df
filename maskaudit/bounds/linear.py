"""Interval and CROWN bounds of a network over the balls around points.

S. Gowal et al., "On the effectiveness of interval bound propagation for training verifiably robust models", 2018;
H. Zhang et al., "Efficient neural network robustness certification with general activation functions" (CROWN), 2018;
S. Wang et al., "Beta-CROWN: efficient bound propagation with per-neuron split constraints", 2021. Everything is
float64; D is the number of regions, S that of the linear functions bounded in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.bounds.network import Network, Step
from maskaudit.threat import ThreatModel

#: Numbers of the largest tensor of coefficients held at once: 8 MB, of which caches hold the most.
CHUNK = 2**20
#: Interval of a smooth activation below which its chord is not computed, since rounding would show.
NARROW = 1e-4
#: Halvings of the interval in which a line touches a smooth activation.
BISECTIONS = 10
#: Relative rounding of one float32 operation, and of one in TF32, which accelerators may use.
UNIT, COARSE_UNIT = 2.0**-24, 2.0**-11


@dataclass(frozen=True)
class Region:
    """Sets of inputs: boxes, and within them the balls of an L2 threat.

    Attributes:
        low, high: corners of the boxes (D, …).
        centre: clean points (D, …).
        radius: of the L2 balls; None where the boxes are all.
    """

    low: Tensor
    high: Tensor
    centre: Tensor
    radius: float | None

    @classmethod
    def around(cls, x: Tensor, threat: ThreatModel) -> Region:
        """All that is admissible for clean points (D, …), with what rounding may add."""
        centre, reach = x.double(), threat.radius(x) + threat.slack
        low, high = threat.bounds
        lowest = (centre - reach).clamp_min(low - threat.slack)
        highest = (centre + reach).clamp_max(high + threat.slack)
        return cls(lowest, highest, centre, threat.reach if threat.norm == "L2" else None)

    def rows(self, chosen: Tensor | slice) -> Region:
        """The region of the chosen points."""
        return Region(self.low[chosen], self.high[chosen], self.centre[chosen], self.radius)

    def lowest(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Lower bounds (D, S) of linear functions (D, S, …), and inputs (D, S, …) of the boxes that are lowest there.

        With a radius the bound is the better of box and ball, and the inputs lie in both.
        """
        middle, half = ((self.high + self.low) / 2).unsqueeze(1), ((self.high - self.low) / 2).unsqueeze(1)
        box = (slopes * middle - slopes.abs() * half).flatten(2).sum(2)
        if self.radius is None:
            return box, middle - slopes.sign() * half
        length = slopes.flatten(2).norm(dim=2)
        centre = self.centre.unsqueeze(1)
        ball = (slopes * centre).flatten(2).sum(2) - self.radius * length
        unit = slopes / length.clamp_min(1e-300).view(*length.shape, *[1] * (slopes.dim() - 2))
        inside = torch.minimum(
            torch.maximum(centre - self.radius * unit, self.low.unsqueeze(1)), self.high.unsqueeze(1)
        )
        return torch.maximum(box, ball), inside


@dataclass(frozen=True)
class Intervals:
    """Bounds of every step, (D, …) by its number, and how far float32 arithmetic may be from the exact (D, …)."""

    low: list[Tensor]
    high: list[Tensor]
    drift: list[Tensor]


@dataclass(frozen=True)
class Relaxation:
    """Lines below and above an activation, slopes and intercepts (D, …)."""

    lower: Tensor
    lower_at: Tensor | float
    upper: Tensor
    upper_at: Tensor


def intervals(network: Network, region: Region, *, tighten: bool, unit: float = UNIT) -> Intervals:
    """Bounds of all steps.

    Args:
        tighten: whether what enters an activation gets CROWN bounds too, where interval bounds leave its sign open;
            regions are then taken one at a time.
        unit: relative rounding of the model's arithmetic.
    """
    entering = {network.steps[number].reads[0] for number in network.activations} if tighten else set()
    found = Intervals([region.low], [region.high], [torch.zeros_like(region.low)])
    for number, step in enumerate(network.steps[1:], 1):
        low, high = _image(step, found)
        if number in entering:
            low, high = _tightened(network, number, low, high, found, region)
        found.low.append(low)
        found.high.append(high)
        found.drift.append(_drift(step, found, unit))
    return found


def _image(step: Step, found: Intervals) -> tuple[Tensor, Tensor]:
    """Interval image of one step."""
    lows, highs = ([held[read] for read in step.reads] for held in (found.low, found.high))
    if step.widen is None:
        return step.call(*lows), step.call(*highs)
    middle = step.call(*((low + high) / 2 for low, high in zip(lows, highs, strict=True)))
    half = step.widen(*((high - low) / 2 for low, high in zip(lows, highs, strict=True)))
    low, high = middle - half, middle + half
    if step.hull is not None:
        sources, function = step.hull
        low = torch.maximum(low, function(*(found.low[source] for source in sources)))
        high = torch.minimum(high, function(*(found.high[source] for source in sources)))
    return low, high


def _drift(step: Step, found: Intervals, unit: float) -> Tensor:
    """How far float32 results may be from exact ones: inherited, and from the step's own sums (Higham 2002, 3.1)."""
    inherited = [found.drift[read] for read in step.reads]
    if step.widen is None:
        return inherited[0] + 16 * unit * torch.maximum(found.low[-1].abs(), found.high[-1].abs())
    sizes = [torch.maximum(found.low[read].abs(), found.high[read].abs()) for read in step.reads]
    assert step.constant is not None
    own = step.widen(*sizes) + step.constant.abs()
    return step.widen(*inherited) + (step.terms + 4) * unit * own if step.terms > 1 else step.widen(*inherited)


def _tightened(
    network: Network, number: int, low: Tensor, high: Tensor, found: Intervals, region: Region
) -> tuple[Tensor, Tensor]:
    """Bounds of a step (D, …), by CROWN where intervals leave signs open."""
    low, high, shape = low.flatten(1).clone(), high.flatten(1).clone(), low.shape
    relaxed = relaxations(network, found)
    every = max(step.shape.numel() for step in network.steps[: number + 1])
    smooth = any(network.steps[n].reads == (number,) and network.steps[n].name != "relu" for n in network.activations)
    for row in range(len(low)):
        open_units = ((low[row] < 0) & (high[row] > 0) | smooth).nonzero().squeeze(1)
        alone = {key: _row(value, row) for key, value in relaxed.items()}
        for units in open_units.split(max(1, CHUNK // (2 * every))) if len(open_units) else ():
            ones = torch.zeros(2 * len(units), low.shape[1], dtype=low.dtype)
            ones[torch.arange(len(units)), units] = 1.0
            ones[len(units) + torch.arange(len(units)), units] = -1.0
            rows = ones.view(1, len(ones), *network.steps[number].shape)
            slopes, constant = backward(network, number, rows, alone)
            bound = (region.rows(slice(row, row + 1)).lowest(slopes)[0] + constant)[0]
            low[row, units] = torch.maximum(low[row, units], bound[: len(units)])
            high[row, units] = torch.minimum(high[row, units], -bound[len(units) :])
    return low.view(shape), torch.maximum(low, high).view(shape)


def _row(value: Relaxation, row: int) -> Relaxation:
    at = value.lower_at
    parts = (value.lower, at, value.upper, value.upper_at)
    return Relaxation(*(part[row : row + 1] if isinstance(part, Tensor) else part for part in parts))  # type: ignore[arg-type]


def relaxations(network: Network, found: Intervals) -> dict[int, Relaxation]:
    """Lines around each activation reached so far, by its number; a rectifier's lower slope is 0 or 1."""
    return {
        number: relaxation(network.steps[number], found.low[read], found.high[read])
        for number in network.activations
        if (read := network.steps[number].reads[0]) < len(found.low)
    }


def levels(network: Network, found: Intervals) -> dict[int, Relaxation]:
    """Constants below and above each activation, which make interval bounds of what comes after."""
    flat = {number: torch.zeros_like(found.low[number]) for number in network.activations}
    return {n: Relaxation(zero, found.low[n], zero, found.high[n]) for n, zero in flat.items()}


def relaxation(step: Step, low: Tensor, high: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Lines around an activation between `low` and `high`; `slope`: of a rectifier's lower line where it is open."""
    if step.name == "relu":
        unsure = (low < 0) & (high > 0)
        on = (low >= 0).to(low.dtype)
        upper = torch.where(unsure, high / (high - low).clamp_min(1e-300), on)
        lower = torch.where(unsure, (high > -low).to(low.dtype) if slope is None else slope, on)
        return Relaxation(lower, 0.0, upper, torch.where(unsure, -upper * low, 0.0))
    upper, upper_at = _above(step, low, high)
    lower, reverse_at = _above(step, -high, -low)
    return Relaxation(lower, 2 * step.call(torch.zeros(())) - reverse_at, upper, upper_at)


def _above(step: Step, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A line above an S-shaped curve, slope and intercept; below it runs that of its reverse (CROWN, table 3).

    Right of the inflection it is the tangent in the middle, left of it the chord; across it the line from the left end
    that touches the right part, a little steeper where the bisection is not done, or the chord if it touches nowhere.
    """
    left, right, width, middle = step.call(low), step.call(high), high - low, (low + high) / 2
    start, end = torch.zeros_like(low), torch.minimum(high, -low).clamp_min(0)
    for _ in range(BISECTIONS):
        tried = (start + end) / 2
        value = step.call(tried)
        steeper = _derivative(step.name, value) * (tried - low) >= value - left
        start, end = torch.where(steeper, tried, start), torch.where(steeper, end, tried)
    ends = _derivative(step.name, right) * width >= right - left
    touching = torch.where(ends, (right - left) / width.clamp_min(1e-300), _derivative(step.name, step.call(start)))
    tangent = _derivative(step.name, step.call(middle))
    flat = torch.minimum(_derivative(step.name, left), _derivative(step.name, right))
    slope = torch.where(width <= NARROW, flat, torch.where(low >= 0, tangent, touching))
    at = torch.where(low >= 0, step.call(middle) - tangent * middle, left - touching * low)
    return slope, torch.where(width <= NARROW, right - flat * high, at)


def _derivative(name: str, value: Tensor) -> Tensor:
    """Of a sigmoid or tanh by its value; the smaller one at two ends is the smallest between them."""
    return value * (1 - value) if name == "sigmoid" else 1 - value.square()


def backward(
    network: Network,
    start: int,
    rows: Tensor,
    relaxed: Mapping[int, Relaxation],
    duals: Mapping[int, Tensor] | None = None,
    seen: dict[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear functions of the input that lie below linear functions of a step.

    Args:
        start: number of the step; rows: coefficients (D, S, …) on it.
        relaxed: lines around the activations before it.
        duals: by activation the multipliers (D, …) of what is known of its argument's sign, signed; added to the
            function, which they only lower where that holds.
        seen: filled with the coefficients (D, S, …) that arrive at each activation.

    Returns:
        Slopes (D, S, …) on the input, and constants (D, S).
    """
    held, constant = {start: rows}, rows.new_zeros(rows.shape[:2])
    for number in range(start, 0, -1):
        if number not in held:
            continue
        above, step = held.pop(number), network.steps[number]
        if step.widen is None:
            lines = relaxed[number]
            if seen is not None:
                seen[number] = above
            plus, minus = above.clamp_min(0), above.clamp_max(0)
            below = [plus * lines.lower.unsqueeze(1) + minus * lines.upper.unsqueeze(1)]
            offset = minus * lines.upper_at.unsqueeze(1)
            if isinstance(lines.lower_at, Tensor):
                offset = offset + plus * lines.lower_at.unsqueeze(1)
            constant = constant + offset.unsqueeze(-1).flatten(2).sum(2)
            if duals is not None and number in duals:
                below[0] = below[0] - duals[number].unsqueeze(1)
        else:
            assert step.constant is not None
            constant = constant + (above * step.constant).unsqueeze(-1).flatten(2).sum(2)
            below = [part.unflatten(0, above.shape[:2]) for part in network.adjoint(number, above.flatten(0, 1))]
        for read, part in zip(step.reads, below, strict=True):
            held[read] = held[read] + part if read in held else part
    return held.get(0, rows.new_zeros((*rows.shape[:2], *network.steps[0].shape))), constant
