"""The attacks inside adversarial training: short, without early stopping, cheap rather than strong.

They are not the attacks of the audit (`maskaudit.attacks`): a model must never be
judged by the search it was trained against.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.rng import PointRNG
from maskaudit.threat import ThreatModel, per_point_norm

#: Total length of the steps in units of ε (Madry et al. 2018, appendix: 2.5 · ε / steps).
STEP_TRAVEL = 2.5


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, so that attack steps leave running statistics alone; the former mode after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def fgsm(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """One step of length ε along the steepest ascent of the cross-entropy (Goodfellow et al. 2015), (N, …)."""
    with evaluating(model):
        gradient = input_gradient(lambda z: F.cross_entropy(model(z), y, reduction="sum"), x)
    return threat.project(x + threat.eps * threat.step_direction(gradient), x)


def pgd(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, steps: int, start: Tensor) -> Tensor:
    """Projected gradient ascent on the cross-entropy from `start` (Madry et al. 2018, section 2), (N, …)."""
    with evaluating(model):
        return ascend(lambda z: F.cross_entropy(model(z), y, reduction="sum"), x, threat, steps=steps, start=start)


def ascend(
    objective: Callable[[Tensor], Tensor], x: Tensor, threat: ThreatModel, *, steps: int, start: Tensor
) -> Tensor:
    """The last of `steps` projected ascent steps on a summed objective, starting at `start` (N, …)."""
    size = STEP_TRAVEL * threat.eps / steps
    x_adv = start
    for _ in range(steps):
        gradient = input_gradient(objective, x_adv)
        x_adv = threat.project(x_adv + size * threat.step_direction(gradient), x)
    return x_adv


def random_start(x: Tensor, threat: ThreatModel, rng: PointRNG, *, step: int) -> Tensor:
    """A uniform draw from the ball around `x` (N, …), clipped to the bounds."""
    shape = x.shape[1:]
    if threat.norm == "Linf":
        noise = 2 * rng.uniform(shape, step=step) - 1
        return threat.clamp(x + threat.eps * noise.to(x))
    direction = rng.normal(shape, step=step)
    radius = rng.fork("radius").uniform((1,), step=step).squeeze(1) ** (1 / math.prod(shape))
    scale = radius / per_point_norm(direction)
    return threat.clamp(x + threat.eps * (direction * scale.view(-1, *[1] * len(shape))).to(x))


def input_gradient(objective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∇ₓ of a sum over points, so that each row is the gradient of its own point."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(objective(x), x)
    return gradient
