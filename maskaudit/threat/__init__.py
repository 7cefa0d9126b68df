"""The threat model: which perturbed inputs count.

An input `x'` is admissible for a clean input `x` when ‖x' − x‖ ≤ ε in the chosen
norm and every coordinate lies inside the bounds. All inputs of one audit share
one threat model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from maskaudit.errors import UsageError
from maskaudit.results import Norm
from maskaudit.sums import column, per_point_norm, row_norm, unit
from maskaudit.threat.features import FARTHEST, FLOAT32_EPS, ROUNDING_ULPS, Features

__all__ = [
    "FARTHEST", "FLOAT32_EPS", "ROUNDING_ULPS", "Features", "Norm", "ThreatModel", "customary_eps", "per_point_norm",
]  # fmt: skip


@dataclass(frozen=True)
class ThreatModel:
    """Norm ball of radius `eps` intersected with the box `bounds`.

    Attributes:
        norm: `"Linf"` or `"L2"`, taken over all coordinates of one input.
        eps: radius in input units, > 0 and finite.
        bounds: smallest and largest admissible coordinate value.
        features: what each feature of a table may be, if they differ; bounds are then (0, 1). In L2 the ball is an
            ellipsoid: changes count in units of each feature's own radius, and those of categories do not.

    Raises:
        UsageError: for an unknown norm, an ε that is not positive and finite, empty bounds, or features in others.
    """

    norm: Norm = "Linf"
    eps: float = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)
    features: Features | None = None

    def __post_init__(self) -> None:
        if self.features is not None and tuple(self.bounds) != (0.0, 1.0):
            raise UsageError("Features are shares of their ranges, so that the bounds must be 0 and 1.")
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

    def radius(self, x: Tensor) -> float | Tensor:
        """Largest change of a coordinate of inputs (N, …) in Linf: ε, or one for each feature (D,)."""
        return self.eps if self.features is None else self.features.radius(self.eps, x)

    def axes(self, like: Tensor) -> float | Tensor:
        """Largest change of each coordinate alone as a multiple of ε: 1, or one for each feature (D,)."""
        return 1.0 if self.features is None else self.features.axes(self.eps, like, self.norm)

    def scaled(self, change: Tensor) -> Tensor:
        """Changes (N, …) in units of ε, for each feature in units of its own radius.

        In L2 features that count share the length of the whole change, and categories move by it in their direction.
        """
        if self.features is None:
            return change
        axes = self.features.axes(self.eps, change, self.norm)
        if self.norm == "Linf":
            return change * axes
        counted = self.features.counted(change)
        length = column(per_point_norm(change), change)
        return axes * length * torch.where(counted, unit(change * (counted & (axes > 0))), change.sign())

    def settle(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """What an attack brings (N, …) as an admissible input: whole numbers and single categories, inside the ball.

        Without features it is left as it is, for `admissible` to judge.
        """
        if self.features is None:
            return x_adv
        return self.features.snapped(self.project(x_adv, x))

    def project(self, x_adv: Tensor, x: Tensor, radius: Tensor | None = None) -> Tensor:
        """Move `x_adv` (N, …) to an admissible point for `x` (N, …).

        Linf: the Euclidean projection (clip to ball, then box). L2: shrink radially
        onto the sphere, then clip to the box; both keep the result admissible since
        clipping towards a box that contains `x` never lengthens the perturbation.
        With features in L2 that holds for the whole numbers and categories next to what comes out
        (`Features.into_ellipsoid`), and `radius` (N,) may take the place of ε.
        """
        if self.norm == "Linf":
            reach = self.radius(x)
            return self.clamp(torch.minimum(torch.maximum(x_adv, x - reach), x + reach))
        if self.features is not None:
            limit = x.new_full((len(x),), self.eps) if radius is None else radius.to(x).clamp_max(FARTHEST)
            rows = self.clamp(x_adv).flatten(1), x.flatten(1)
            return self.features.into_ellipsoid(*rows, limit[:, None]).view_as(x)
        delta = x_adv - x
        too_long = column(per_point_norm(delta) > self.eps, delta)
        return self.clamp(x + torch.where(too_long, self.eps * unit(delta), delta))

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """‖x_adv − x‖ per point, shape (N,), float64; for Linf the largest difference as float32 rounds it.

        With features in units of ε for each, where what rounding may add to a coordinate does not count; in L2 of the
        nearest whole numbers.
        """
        if self.features is not None and self.norm == "L2":
            change = self.features.rounded(x_adv.flatten(1)).double() - x.flatten(1).double()
            return row_norm(self.features.units(change, self.slack))
        if self.features is not None:
            radius = self.features.radius(self.eps, x)
            change = ((x_adv - x).abs() - self.slack).clamp_min(0)
            share = torch.where(change > 0, change / radius, 0.0).clamp_max(FARTHEST)
            return self.eps * share.amax(dim=1).double()
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
        if self.features is not None:
            inside &= self.features.valid(torch.nan_to_num(x_adv), slack)
        return inside & (self.distance(x_adv, x) <= self.reach)

    def step_direction(self, gradient: Tensor) -> Tensor:
        """Unit steepest-ascent direction for a gradient (N, …): its sign (Linf) or g/‖g‖₂ (L2); zero stays zero."""
        if self.norm == "Linf":
            return self.scaled(gradient.sign())
        return self.scaled(unit(gradient * self.axes(gradient)))

    def full_size(self, change: Tensor) -> Tensor:
        """The change (N, …) in units of ε that goes the way of another: its signs (Linf), length 1 (L2)."""
        if self.norm == "Linf" or self.features is None:
            return self.step_direction(change)
        return self.scaled(unit(change / self.axes(change).clamp_min(1e-6)))  # type: ignore[union-attr]

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Dual norm of a gradient (N, …), shape (N,): the first-order gain of a unit step (L1 for Linf, L2 for L2)."""
        if self.norm == "Linf":
            return row_norm(self.scaled(gradient), 1)
        if self.features is None:
            return per_point_norm(gradient)
        gain, counted = (gradient * self.axes(gradient)).flatten(1), self.features.counted(gradient)
        return per_point_norm(gain * counted) + row_norm(gain * ~counted, 1)

    def share_of_box(self, shape: Sequence[int]) -> float:
        """ε as a share of the diameter of the box of inputs of `shape` (…), in the norm of the ball."""
        width = self.bounds[1] - self.bounds[0]
        return self.eps / (width if self.norm == "Linf" else width * math.prod(shape) ** 0.5)

    def with_eps(self, eps: float) -> ThreatModel:
        """The same norm, bounds and features with another radius."""
        return replace(self, eps=eps)

    def unbounded(self, x: Tensor) -> ThreatModel:
        """A ball that holds the whole box of inputs (N, …); what must not change still must not."""
        width = self.bounds[1] - self.bounds[0]
        eps = width if self.norm == "Linf" else width * x[0].numel() ** 0.5
        return replace(self, eps=eps, features=self.features and self.features.unbounded())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; features only where there are some."""
        fields = {"norm": self.norm, "eps": self.eps, "bounds": list(self.bounds)}
        return fields if self.features is None else {**fields, "features": asdict(self.features)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ThreatModel:
        """The reverse, from fields that were read with their limits.

        Raises:
            UsageError: for features that do not fit each other.
        """
        given = fields.get("features")
        if given is None:
            return cls(fields["norm"], fields["eps"], tuple(fields["bounds"]))
        groups = tuple(map(tuple, given["groups"]))
        sizes = {len(given[name]) for name in ("low", "width", "scale", "step")}
        if len(sizes) != 1 or any(number >= min(sizes) for group in groups for number in group):
            raise UsageError("The features of the threat model do not fit each other.")
        low, width, scale, step = (tuple(given[name]) for name in ("low", "width", "scale", "step"))
        return cls(fields["norm"], fields["eps"], tuple(fields["bounds"]), Features(low, width, scale, step, groups))


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
