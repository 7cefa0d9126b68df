"""The threat model: which perturbed inputs count.

An input `x'` is admissible for a clean input `x` when ‖x' − x‖ ≤ ε in the chosen
norm and every coordinate lies inside the bounds. All inputs of one audit share
one threat model.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

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


#: Share of the step between two whole numbers by which float32 may miss one of them.
GRID_SLACK = 0.05
#: Distance in radii at which an input counts that changes what must not change.
FARTHEST = 1e3


@dataclass(frozen=True)
class Features:
    """What each of D features may be. A coordinate in [0, 1] is the share (value − low) / width of its range.

    Attributes:
        low, width: smallest value and extent of each feature, in its own unit (D,).
        scale: radius of each as a share of ε (D,): 0 for what must not change.
        step: distance between neighbouring coordinates (D,): 1 / width for whole numbers, 0 where all are admissible.
        groups: numbers of the features that code one category each: one of them is 1, the others 0. Unless frozen,
            any category may be changed into any other, whatever ε is.
    """

    low: tuple[float, ...]
    width: tuple[float, ...]
    scale: tuple[float, ...]
    step: tuple[float, ...]
    groups: tuple[tuple[int, ...], ...] = ()

    def encode(self, values: Tensor) -> Tensor:
        """Coordinates of values (N, D) in their own units, float32."""
        low, width = (torch.tensor(one, dtype=torch.float64) for one in (self.low, self.width))
        return ((values.double() - low) / width).float()

    def decode(self, x: Tensor, *, snap: bool = False) -> Tensor:
        """Values of coordinates (N, D); the graph is kept.

        Whole numbers are exact where `x` is one up to rounding. With `snap` they are so everywhere, and categories
        are the likeliest ones, while the gradient is that without (straight-through, Bengio et al. 2013).
        """
        if snap:
            x = _replaced(x, self.snapped(x.detach()))
        values = x.new_tensor(self.low) + x * x.new_tensor(self.width)
        whole = values.detach().round()
        near = (x.new_tensor(self.step) > 0) & ((values.detach() - whole).abs() <= GRID_SLACK)
        return _replaced(values, torch.where(near, whole, values.detach()))

    def snapped(self, x: Tensor) -> Tensor:
        """The nearest coordinates (N, D) that are whole numbers and single categories where they must be."""
        step = x.new_tensor(self.step)
        snapped = torch.where(step > 0, (x / step.clamp_min(1e-12)).round() * step, x)
        for group in self.groups:
            columns = list(group)
            chosen = snapped[:, columns].argmax(dim=1, keepdim=True)
            snapped[:, columns] = torch.zeros_like(snapped[:, columns]).scatter_(1, chosen, 1.0)
        return snapped

    def radius(self, eps: float, like: Tensor) -> Tensor:
        """Largest change of each coordinate (D,): whole steps for whole numbers, anything for categories."""
        scale, step = like.new_tensor(self.scale), like.new_tensor(self.step)
        radius = eps * scale
        radius = torch.where(step > 0, (radius / step.clamp_min(1e-12) + GRID_SLACK).floor() * step, radius)
        grouped = sorted(number for group in self.groups for number in group)
        radius[grouped] = (scale[grouped] > 0).to(radius)
        return radius

    def valid(self, x: Tensor, slack: float) -> Tensor:
        """Whether rows of coordinates (N, D) are whole numbers and single categories where they must be, (N,)."""
        off = (x - self.snapped(x)).abs()
        step = x.new_tensor(self.step)
        allowed = torch.where(step > 0, step * GRID_SLACK, slack)
        held: Tensor = (off <= allowed).all(dim=1)
        return held

    def unbounded(self) -> Features:
        """The same with the whole range for everything that may change."""
        return replace(self, scale=tuple(float(share > 0) for share in self.scale))


class _Replaced(torch.autograd.Function):
    """One tensor in the forward pass, the gradient of another in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, instead: Tensor) -> Tensor:
        return instead.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _replaced(x: Tensor, instead: Tensor) -> Tensor:
    replaced: Tensor = _Replaced.apply(x, instead)  # type: ignore[no-untyped-call]
    return replaced


@dataclass(frozen=True)
class ThreatModel:
    """Norm ball of radius `eps` intersected with the box `bounds`.

    Attributes:
        norm: `"Linf"` or `"L2"`, taken over all coordinates of one input.
        eps: radius in input units, > 0 and finite.
        bounds: smallest and largest admissible coordinate value.
        features: what each feature of a table may be, if they differ; Linf only, and bounds are then (0, 1).

    Raises:
        UsageError: for an unknown norm, an ε that is not positive and finite, empty bounds, or features in another
            norm.
    """

    norm: Norm = "Linf"
    eps: float = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)
    features: Features | None = None

    def __post_init__(self) -> None:
        if self.features is not None and (self.norm != "Linf" or tuple(self.bounds) != (0.0, 1.0)):
            raise UsageError(f"Features have no common length, which {self.norm} needs; give --norm Linf.")
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

    def scaled(self, change: Tensor) -> Tensor:
        """Changes (N, …) in units of ε, for each feature in units of its own radius."""
        return change if self.features is None else change * (self.features.radius(self.eps, change) / self.eps)

    def settle(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """What an attack brings (N, …) as an admissible input: whole numbers and single categories, inside the ball.

        Without features it is left as it is, for `admissible` to judge.
        """
        if self.features is None:
            return x_adv
        return self.features.snapped(self.project(x_adv, x))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Move `x_adv` (N, …) to an admissible point for `x` (N, …).

        Linf: the Euclidean projection (clip to ball, then box). L2: shrink radially
        onto the sphere, then clip to the box; both keep the result admissible since
        clipping towards a box that contains `x` never lengthens the perturbation.
        """
        if self.norm == "Linf":
            radius = self.radius(x)
            return self.clamp(torch.minimum(torch.maximum(x_adv, x - radius), x + radius))
        delta = x_adv - x
        too_long = _column(per_point_norm(delta) > self.eps, delta)
        return self.clamp(x + torch.where(too_long, self.eps * _unit(delta), delta))

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """‖x_adv − x‖ per point, shape (N,), float64; for Linf the largest difference as float32 rounds it."""
        if self.features is not None:
            radius = self.features.radius(self.eps, x)
            change = (x_adv - x).abs()
            share = torch.where(change <= self.slack, 0.0, change / radius).clamp_max(FARTHEST)
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
        return _unit(gradient)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Dual norm of a gradient (N, …), shape (N,): the first-order gain of a unit step (L1 for Linf, L2 for L2)."""
        return row_norm(self.scaled(gradient), 1) if self.norm == "Linf" else per_point_norm(gradient)

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


def per_point_norm(delta: Tensor) -> Tensor:
    """‖·‖₂ of each row of (N, …), shape (N,), safe against under- and overflow of the squares."""
    largest = _largest(delta)
    return row_norm(delta / largest) * largest.flatten()


#: Pixels of an image that a report shows; larger ones would make it too big.
MAX_SHOWN_PIXELS = 64 * 64 * 3


def showable(shape: Sequence[int]) -> bool:
    """Whether points of this shape are small grey or colour images (C, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3) and math.prod(shape) <= MAX_SHOWN_PIXELS


def pixels(image: Tensor) -> str:
    """An image of values from 0 to 1 as 8-bit pixels in base64, for a report."""
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return base64.b64encode(levels.cpu().contiguous().numpy().tobytes()).decode("ascii")


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
