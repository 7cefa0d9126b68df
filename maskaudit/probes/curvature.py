"""Low-gradient curvature: what a step orthogonal to the gradient would gain

For the logit margin and for cross-entropy, the largest eigenvalue of the input Hessian is found among
the directions orthogonal to the gradient, where the first-order change is zero
(Lanczos on Hessian-vector products). The second-order prediction of a step of size ε along that
direction is compared with the first-order prediction ε‖∇‖ (dual norm) of the usual step; in Linf the step is
ε·sign(v), whose first-order part is included. The headline is the share of points where, for the margin, the
curved step is predicted to gain more and, measured, does.

Raised when
    More than 25 % of the points gain more by the curved step; honest networks of smooth units
    reach 14 %.

What it means
    The way out leads across the gradient: the function is nearly flat along what
    attacks follow and bends upwards elsewhere. Attacks that start on the point and
    trust its gradient leave in a poor direction. Networks of ReLU units are piecewise
    linear, their margin has no curvature within a piece, and this probe then reads 0.

What to do
    Start attacks from random points in the ball with large first steps, attack several
    target classes, and add gradient-free search.

Source
    - Tramèr et al. 2018, Ensemble adversarial training: attacks and defenses, section 4.1
    - Moosavi-Dezfooli, Fawzi, Uesato & Frossard 2019, Robustness via curvature regularization, and vice versa
    - Pearlmutter 1994, Fast exact multiplication by the Hessian
    - Golub & Van Loan 2013, Matrix computations, section 10.3
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskaudit.attacks.losses import cross_entropy, margin
from maskaudit.errors import GradientError
from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, NotApplicable, ProbeContext
from maskaudit.probes.lanczos import largest_eigenpair
from maskaudit.results import ProbeFinding
from maskaudit.rng import PointRNG
from maskaudit.target import differentiate
from maskaudit.threat import per_point_norm

#: Lanczos steps; the largest eigenvalue of a matrix with a decaying spectrum is found to a few percent.
STEPS = 12
#: Points measured: every point costs two forward and about 2·(STEPS + 3) double-backward passes.
MAX_POINTS = 64
#: A measured gain counts from this many float32 units in the last place of the objective's ingredients.
ROUNDING = 16 * 2.0**-23

PointObjective = Callable[[Tensor, Tensor], Tensor]
"""(scores (B, K), labels (B,)) → (B,)."""


@dataclass(frozen=True)
class Curvature:
    """Per point (N,), float64; gains are changes of the objective for a step of size ε.

    `eigenvalue`: largest one of the restricted Hessian; `first`, `second`: predicted gains of the step along
    the gradient and of the curved step; `first_measured`, `second_measured`: what they did gain.
    `custom`: names of custom autograd functions met, whose second derivative is what their backward makes it.
    """

    eigenvalue: Tensor
    first: Tensor
    second: Tensor
    first_measured: Tensor
    second_measured: Tensor
    custom: tuple[str, ...] = ()

    @property
    def wins(self) -> Tensor:
        """Points (N,) bool where the curved step is predicted to gain more and does."""
        slack = ROUNDING * torch.maximum(self.first.abs(), self.first_measured.abs()).clamp_min(1e-30)
        return (self.second > self.first) & (self.second_measured > self.first_measured + slack)


class _Hessian:
    """Gradient of an objective at a batch of points, kept differentiable for Hessian-vector products."""

    def __init__(self, context: ProbeContext, x: Tensor, y: Tensor, objective: PointObjective) -> None:
        self.shape, self.count = x.shape, context.target.count_backward
        self.leaf = x.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            try:
                scores = context.target.differentiable_scores(self.leaf)
            except GradientError as error:
                raise NotApplicable(f"The model has no gradient. {error}") from error
            self.value = objective(scores, y)
            self.custom = custom_backwards(self.value)
            refuse_once_differentiable(self.custom)
            self.gradient = self._differentiate(self.value.sum(), create_graph=True)

    def product(self, v: Tensor) -> Tensor:
        """H v for rows v (B, D) float64; zero where the gradient does not depend on the input."""
        if not self.gradient.requires_grad:
            return torch.zeros_like(v)
        with torch.enable_grad():
            inner = (self.gradient.flatten(1) * v.to(self.gradient.dtype)).sum()
            return self._differentiate(inner, create_graph=False).flatten(1).double()

    def _differentiate(self, value: Tensor, *, create_graph: bool) -> Tensor:
        """Gradient of a scalar in the input: a missing one is zero, an impossible one NotApplicable."""
        if not value.requires_grad:
            return torch.zeros_like(self.leaf)
        self.count(len(self.leaf))
        try:
            (gradient,) = differentiate(value, (self.leaf,), create_graph=create_graph, retain_graph=True)
        except GradientError as error:
            raise NotApplicable(f"The model cannot be differentiated twice. {error}") from error
        return torch.zeros_like(self.leaf) if gradient is None else gradient


def custom_backwards(value: Tensor) -> list[type[torch.autograd.Function]]:
    """The custom autograd functions in the graph of a tensor, each once."""
    found: dict[type[torch.autograd.Function], None] = {}
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(node, "_forward_cls", None)
        if function is not None:
            found[function] = None
        waiting.extend(following for following, _ in node.next_functions)
    return list(found)


def refuse_once_differentiable(functions: list[type[torch.autograd.Function]]) -> None:
    """Autograd silently leaves out what `once_differentiable` cuts, so its Hessian would read zero.

    Raises:
        NotApplicable: when one of the functions is marked so.
    """
    for function in functions:
        code = getattr(function.backward, "__code__", None)  # the decorator's wrapper lives in torch's own file
        if code is not None and code.co_filename == torch.autograd.function.__file__:
            raise NotApplicable(f"The model cannot be differentiated twice: {function.__name__} is marked so.")


def curvature(context: ProbeContext, objective: PointObjective, rng: PointRNG, batch: slice) -> Curvature:
    """Curvature and predicted and measured gains at the points of `batch`."""
    x, y, threat = context.x[batch], context.y[batch], context.threat
    hessian = _Hessian(context, x, y, objective)
    gradient = hessian.gradient.detach()
    if not bool(torch.isfinite(gradient).all()):
        raise NotApplicable("The gradient is not finite on some points; see zero-gradient.")
    flat = gradient.flatten(1).double()
    length = per_point_norm(flat)
    unit = flat / length.clamp_min(1e-300)[:, None]
    start = rng.normal((flat.shape[1],)).to(flat)
    eigenvalue, direction = largest_eigenpair(hessian.product, start, unit, STEPS)
    step = threat.eps * threat.scaled(direction.sign() if threat.norm == "Linf" else direction)
    bend = 0.5 * (step * hessian.product(step)).sum(dim=1)
    slope = (flat * step).sum(dim=1)
    along = threat.eps * threat.step_direction(gradient)
    origin = hessian.value.detach().double()

    def gain(displacement: Tensor) -> Tensor:
        moved = threat.project(x + displacement.to(x).view_as(x), x)
        return objective(context.target.scores(moved), y).double() - origin

    return Curvature(
        eigenvalue=eigenvalue,
        first=threat.eps * threat.dual_norm(flat),
        second=slope.abs() + bend,
        first_measured=gain(along),
        second_measured=torch.maximum(gain(step), gain(-step)),
        custom=tuple(function.__name__ for function in hessian.custom),
    )


def measure(context: ProbeContext) -> Measurement:
    """Share of points where the curved step beats the usual one for the margin."""
    target = context.target
    if target.random:
        raise NotApplicable("The model answers at random, so its Hessian changes from call to call.")
    n = min(len(context.x), MAX_POINTS)
    decision = _over_batches(context, lambda scores, y: margin(scores, y, target.reject_class), "margin", n)
    loss = _over_batches(context, cross_entropy, "loss", n)
    count = int(decision.wins.sum())
    return Measurement(
        count / n, "share of points", n, count=count,
        findings=(ProbeFinding(f"A step across the gradient gains more than one along it on {count} of {n} points."),),
        details={
            "margin": _summary(decision), "cross_entropy": _summary(loss), "lanczos_steps": STEPS,
            "custom_backwards": list(decision.custom),
        },
        per_point=tuple(decision.eigenvalue.tolist()),
    )  # fmt: skip


def _over_batches(context: ProbeContext, objective: PointObjective, stream: str, n: int) -> Curvature:
    size = context.target.batches.size
    parts = []
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        rng = context.rng.select(torch.arange(rows.start, rows.stop)).fork(stream)
        parts.append(curvature(context, objective, rng, rows))
    figures = ("eigenvalue", "first", "second", "first_measured", "second_measured")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in figures}
    return Curvature(**joined, custom=parts[0].custom)


def _summary(found: Curvature) -> dict[str, Any]:
    """Medians over the points, and how often the curved step is predicted, and found, to win."""
    return {
        "share_curved_step_wins": float(found.wins.double().mean()),
        "share_predicted_to_win": float((found.second > found.first).double().mean()),
        "eigenvalue_median": float(found.eigenvalue.quantile(0.5)),
        "eigenvalue_largest": float(found.eigenvalue.max()),
        "first_order_gain_median": float(found.first.quantile(0.5)),
        "second_order_gain_median": float(found.second.quantile(0.5)),
        "measured_gain_along_gradient_median": float(found.first_measured.quantile(0.5)),
        "measured_gain_across_gradient_median": float(found.second_measured.quantile(0.5)),
    }


PROBE = documented_probe("low-gradient-curvature", measure, needs=("gradients",), docstring=__doc__)
