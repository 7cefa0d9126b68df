"""Random noise of full strength: the weakest attack there is, and so the most telling when it wins.

Noise that breaks points which a gradient attack leaves is a proof by itself that the gradients
mislead (Carlini et al. 2019, "On evaluating adversarial robustness", section 5.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskaudit.attacks.ball import Ball
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.resident import ResidentBatch
from maskaudit.rng import PointRNG
from maskaudit.sums import column
from maskaudit.target import Target
from maskaudit.threat import ThreatModel, per_point_norm


def random_noise(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, draws: int = 300
) -> Attempt:
    """Independent draws from the surface of the ball, the best margin kept.

    Linf: every coordinate moves by +ε or −ε; L2: a uniform direction of length ε. Both are then
    clipped to the bounds.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        draws: evaluations per point.

    Returns:
        The draw with the largest breaking margin; `first_success` counts draws.
    """
    stream = rng.fork("noise")
    batch = ResidentBatch.on(target, x, y, limit=draws, enter=lambda points: Ball.around(x[points], threat))
    while len(batch):
        ball, points = batch.state, batch.points
        draw = stream.select(points)
        if ball.low is not None and ball.high is not None:
            candidate = torch.where(draw.coins(x.shape[1:], step=batch.number), ball.high, ball.low)
        else:
            candidate = surface_noise(ball.clean, threat=threat, rng=draw, step=batch.number)
        reached = target.margin(target.scores(candidate), y[points])
        batch.offer(candidate, reached)
        batch.advance(reached > 0)
    return batch.finish()


def surface_noise(x: Tensor, *, threat: ThreatModel, rng: PointRNG, step: int | Tensor = 0) -> Tensor:
    """One admissible point per clean point (N, …): a random corner (Linf) or direction (L2) of the ball."""
    shape = x.shape[1:]
    if threat.norm == "Linf":
        return threat.project(x + threat.eps * rng.signs(shape, step=step).to(x), x)
    direction = rng.normal(shape, step=step).to(x)
    scale = threat.eps / per_point_norm(direction).clamp_min(torch.finfo(x.dtype).tiny)
    return threat.project(x + threat.scaled(direction * column(scale, x)), x)
