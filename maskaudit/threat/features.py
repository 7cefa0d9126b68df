"""What the features of a table may be: whole numbers, categories, and how far each may change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from maskaudit.results import Norm
from maskaudit.sums import per_point_norm

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
        snapped = self.rounded(x)
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

    def axes(self, eps: float, like: Tensor, norm: Norm) -> Tensor:
        """Largest change of each coordinate alone as a multiple of ε (D,); in Linf whole steps of whole numbers."""
        radius = self.radius(eps, like) / eps
        return radius if norm == "Linf" else torch.where(self.counted(like), like.new_tensor(self.scale), radius)

    def counted(self, like: Tensor) -> Tensor:
        """Whether changes of each coordinate have a length in L2, bool (D,): those that code categories have none."""
        counted = torch.ones(len(self.scale), dtype=torch.bool, device=like.device)
        counted[[number for group in self.groups for number in group]] = False
        return counted

    def units(self, change: Tensor, slack: float) -> Tensor:
        """Changes (N, D) of coordinates that count in L2, each in units of its own axis; 0 for those that do not, and
        for changes up to `slack`; `FARTHEST` where nothing must change."""
        size = (change.abs() - slack).clamp_min(0)
        scale = change.new_tensor(self.scale)
        far = torch.where(size > 0, FARTHEST, 0.0).to(change)
        units = torch.where(scale > 0, size / scale.clamp_min(1e-12), far)
        return torch.where(self.counted(change), units * change.sign(), 0.0)

    def into_ellipsoid(self, x_adv: Tensor, x: Tensor, radius: Tensor) -> Tensor:
        """Coordinates (N, D) in [0, 1] moved so near to `x` (N, D) that what `snapped` makes of them is at most
        `radius` (N, 1) away, in units of the axes. Whole numbers are shortened with all others and rounded, towards `x`
        where they do not fit otherwise; the remaining coordinates share the length that whole numbers leave.
        """
        scale, step = x.new_tensor(self.scale), x.new_tensor(self.step)
        whole, counted = (step > 0) & self.counted(x), self.counted(x)
        change = torch.where((scale > 0) | ~counted, x_adv - x, 0.0)
        units = self.units(change, 0.0)
        shrink = radius / per_point_norm(units)[:, None].clamp_min(1e-12).maximum(radius)
        latent = torch.where(whole, x + change * shrink, x)
        jump = self.units(self.rounded(latent) - x, 0.0) * whole
        steps = (change * shrink / step.clamp_min(1e-12)).trunc() * step
        fits = per_point_norm(jump)[:, None] <= radius * (1 + ROUNDING_ULPS * FLOAT32_EPS)
        jump = torch.where(fits, jump, self.units(steps, 0.0) * whole)
        latent = torch.where(fits | ~whole, latent, x + steps)
        left = (radius.square() - per_point_norm(jump)[:, None].square()).clamp_min(0).sqrt()
        real = per_point_norm(units * ~whole)[:, None]
        moved = x + change * torch.where(counted, left / real.clamp_min(1e-12).maximum(left), 1.0)
        return torch.where(whole, latent, moved).clamp(0, 1)

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest coordinates (N, D) that are whole numbers where they must be."""
        step = x.new_tensor(self.step)
        return torch.where(step > 0, (x / step.clamp_min(1e-12)).round() * step, x)

    def valid(self, x: Tensor, slack: float) -> Tensor:
        """Whether rows of coordinates (N, D) are whole numbers and single categories where they must be, (N,)."""
        off = (x - self.snapped(x)).abs()
        step = x.new_tensor(self.step)
        allowed = torch.where(step > 0, step * GRID_SLACK, slack)
        return (off <= allowed).all(dim=1)

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
    return _Replaced.apply(x, instead)  # type: ignore[no-untyped-call]
