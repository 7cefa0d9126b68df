"""The threat model: which perturbed inputs count.

An input `x'` is admissible for a clean input `x` when ‖x' − x‖ ≤ ε in the chosen
norm and every coordinate lies inside the bounds. All inputs of one audit share
one threat model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from maskaudit.errors import UsageError
from maskaudit.results import Norm as Norm
from maskaudit.sums import row_norm

#: Slack for float32 rounding when an example is checked against the ball and the
#: bounds: relative to the largest magnitude involved, 8 units in the last place
#: of float32 (torchattacks#136 reports −2.98e-08 as an honest pixel value).
ROUNDING_ULPS = 8
FLOAT32_EPS = 2.0**-23


@dataclass(frozen=True)
class ThreatModel:
    """Norm ball of radius `eps` intersected with the box `bounds`.

    Attributes:
        norm: `"Linf"` or `"L2"`, taken over all coordinates of one input.
        eps: radius in input units, > 0 and finite.
        bounds: smallest and largest admissible coordinate value.

    Raises:
        UsageError: for an unknown norm, an ε that is not positive and finite, or empty bounds.
    """

    norm: Norm = "Linf"
    eps: float = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise UsageError(f"The norm must be Linf or L2, got {self.norm!r}.")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise UsageError(f"ε must be a positive number, got {self.eps:g}; try --eps 8/255.")
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(f"The bounds must be two finite numbers, smallest first, got {low:g},{high:g}.")

    def per_coordinate(self, x: Tensor) -> float:
        """Radius per coordinate of inputs (N, …) at which a gradient ought to be useful: ε, or ε/√d for L2."""
        return self.eps if self.norm == "Linf" else self.eps / float(x[0].numel()) ** 0.5

    def clamp(self, x: Tensor) -> Tensor:
        """Clip every coordinate of `x` (any shape) to the bounds."""
        return x.clamp(*self.bounds)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Move `x_adv` (N, …) to an admissible point for `x` (N, …).

        Linf: the Euclidean projection (clip to ball, then box). L2: shrink radially
        onto the sphere, then clip to the box; both keep the result admissible since
        clipping towards a box that contains `x` never lengthens the perturbation.
        """
        if self.norm == "Linf":
            return self.clamp(torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps))
        delta = x_adv - x
        too_long = _column(per_point_norm(delta) > self.eps, delta)
        return self.clamp(x + torch.where(too_long, self.eps * _unit(delta), delta))

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """‖x_adv − x‖ per point, shape (N,), float64; for Linf the largest difference as float32 rounds it."""
        if self.norm == "Linf":  # the largest of the rounded differences is the largest difference, rounded
            return (x_adv - x).flatten(1).abs_().amax(dim=1).double()
        return row_norm(x_adv.double() - x.double())

    @property
    def slack(self) -> float:
        """What float32 rounding may add to a length or a coordinate of an admissible input."""
        low, high = self.bounds
        return ROUNDING_ULPS * FLOAT32_EPS * max(abs(low), abs(high), self.eps)

    @property
    def reach(self) -> float:
        """The largest distance that an admissible input may measure: ε, and what rounding may add."""
        return self.eps + self.slack

    def admissible(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """True per point (N,) where `x_adv` lies in ball and box, up to float32 rounding, and is finite."""
        low, high = self.bounds
        slack = self.slack
        smallest, largest = torch.aminmax(x_adv.flatten(1), dim=1)  # NaN where there is one, which nothing admits
        inside = (smallest >= low - slack) & (largest <= high + slack)
        return inside & (self.distance(x_adv, x) <= self.reach)

    def step_direction(self, gradient: Tensor) -> Tensor:
        """Unit steepest-ascent direction for a gradient (N, …): its sign (Linf) or g/‖g‖₂ (L2); zero stays zero."""
        if self.norm == "Linf":
            return gradient.sign()
        return _unit(gradient)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Dual norm of a gradient (N, …), shape (N,): the first-order gain of a unit step (L1 for Linf, L2 for L2)."""
        return row_norm(gradient, 1) if self.norm == "Linf" else per_point_norm(gradient)

    def share_of_box(self, shape: Sequence[int]) -> float:
        """ε as a share of the diameter of the box of inputs of `shape` (…), in the norm of the ball."""
        width = self.bounds[1] - self.bounds[0]
        return self.eps / (width if self.norm == "Linf" else width * math.prod(shape) ** 0.5)

    def with_eps(self, eps: float) -> ThreatModel:
        """The same norm and bounds with another radius."""
        return ThreatModel(self.norm, eps, self.bounds)


def customary_eps(norm: Norm, shape: Sequence[int], bounds: tuple[float, float]) -> float:
    """The field's usual ε for inputs of `shape` (C, H, W) or (D,), scaled to the width of the bounds.

    Linf: 8/255 for colour images (Madry et al. 2018), 0.3 for 28×28 grey, 0.2 for 8×8 digits.
    L2: 0.5 for colour (RobustBench), 1.5 for 28×28 grey, 0.8 for 8×8 digits. Vectors get the colour values.
    """
    grey = len(shape) == 3 and shape[0] == 1
    if grey and shape[1] <= 16:
        eps = {"Linf": 0.2, "L2": 0.8}[norm]
    elif grey and shape[1] <= 32:
        eps = {"Linf": 0.3, "L2": 1.5}[norm]
    else:
        eps = {"Linf": 8 / 255, "L2": 0.5}[norm]
    return eps * (bounds[1] - bounds[0])


def per_point_norm(delta: Tensor) -> Tensor:
    """‖·‖₂ of each row of (N, …), shape (N,), safe against under- and overflow of the squares."""
    largest = _largest(delta)
    return row_norm(delta / largest) * largest.flatten()


def _unit(delta: Tensor) -> Tensor:
    """Each row of (N, …) divided by its ‖·‖₂, down to subnormal numbers (nearly saturated losses); zero stays zero."""
    scaled = delta / _largest(delta)
    return scaled / _column(row_norm(scaled).clamp_min(1.0), scaled)


def _largest(delta: Tensor) -> Tensor:
    """Largest magnitude in each row of (N, …), shape (N, 1, …); 1 for rows of zeros."""
    largest = delta.flatten(1).abs().amax(dim=1)
    return _column(torch.where(largest > 0, largest, 1.0), delta)


def _column(per_point: Tensor, like: Tensor) -> Tensor:
    return per_point.view(-1, *[1] * (like.dim() - 1))
