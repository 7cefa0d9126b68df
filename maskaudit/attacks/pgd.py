"""FGSM and projected gradient descent on the model's gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from maskaudit.attacks.ball import Ball, finite
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.losses import Loss, build_objective
from maskaudit.attacks.resident import ResidentBatch, SlotState
from maskaudit.rng import PointRNG
from maskaudit.sums import column
from maskaudit.target import Target
from maskaudit.threat import ThreatModel, per_point_norm

#: Step size in units of ε/steps when none is given: 2.5 lets a point cross the ball
#: and come back (Madry et al. 2018, section 5).
MADRY_STEP = 2.5


def random_start(x: Tensor, *, threat: ThreatModel, rng: PointRNG, step: int = 0, at_surface: bool = False) -> Tensor:
    """An admissible point drawn at random around `x` (N, …), before clipping to the bounds.

    Linf: uniform in the ball. L2: a uniform direction, and a uniform distance or, `at_surface`, the largest. Points
    drawn uniformly from a ball of many dimensions all lie at its surface: ascent in steps of one size breaks fewer
    points from there, Auto-PGD more, and restarts differ more from each other.
    """
    shape = x.shape[1:]
    if threat.norm == "Linf":
        return threat.project(x + threat.eps * threat.scaled(2 * rng.uniform(shape, step=step).to(x) - 1), x)
    direction = rng.normal(shape, step=step).to(x)
    distance = x.new_ones(len(x)) if at_surface else rng.uniform((1,), step=step + 1_000_003).squeeze(1).to(x)
    scale = threat.eps * distance / per_point_norm(direction).clamp_min(1e-12)
    return threat.project(x + threat.scaled(direction * column(scale, x)), x)


def fgsm(target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, loss: Loss = "ce") -> Attempt:
    """One full step from the clean point (Goodfellow et al. 2015); for L2 the step is ε·g/‖g‖₂."""
    return pgd(target, x, y, threat=threat, rng=rng, loss=loss, steps=1, step_size=threat.eps, start="clean")


def pgd(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, loss: Loss = "ce", steps: int = 40,
    step_size: float | None = None, relative_step: float | None = None, start: str = "random",
    starts: Tensor | None = None,
) -> Attempt:  # fmt: skip
    """Projected gradient ascent with a fixed step (Madry et al. 2018).

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        steps: gradient steps per point; one more evaluation scores the last iterate.
        step_size: in input units; `relative_step` gives it in units of ε; default 2.5·ε/steps.
        start: "random" (see `random_start`) or "clean".
        starts: points (N, …) to begin at instead, moved into ball and bounds first.

    Returns:
        The iterate with the largest breaking margin; `first_success` counts gradient steps plus one.
    """
    if step_size is None:
        step_size = threat.eps * relative_step if relative_step is not None else MADRY_STEP * threat.eps / steps
    objective = build_objective(loss, y, target.scores(x), reject_class=target.reject_class)

    def enter(points: Tensor) -> _State:
        clean = x[points]
        if starts is not None:
            first = threat.project(starts[points], clean)
        else:
            first = random_start(clean, threat=threat, rng=rng.select(points)) if start == "random" else clean.clone()
        return _State(Ball.around(clean, threat), first)

    batch = ResidentBatch.on(target, x, y, limit=steps + 1, enter=enter)
    while len(batch):
        state, points = batch.state, batch.points
        result = target.value_and_grad(state.current, lambda s, r, points=points: objective(s, points[r]))  # type: ignore[misc]
        reached = target.margin(result.scores, y[points])
        batch.offer(state.current, reached)
        state.ball.step(state.current, finite(result.grad), step_size, out=state.current)
        batch.advance(reached > 0)
    return batch.finish()


@dataclass
class _State(SlotState):
    """Per slot: the ball and the iterate in it."""

    ball: Ball
    current: Tensor
