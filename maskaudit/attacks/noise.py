"""Random noise of full strength: the weakest attack there is, and so the most telling when it wins.

Noise that breaks points which a gradient attack leaves is a proof by itself that the gradients
mislead (Carlini et al. 2019, "On evaluating adversarial robustness", section 5.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskaudit.attacks.interface import ActiveSet, Attempt, BestCandidates
from maskaudit.rng import PointRNG
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
    best = BestCandidates(x)
    active = ActiveSet(len(x), limit=draws, batch_size=target.batch_size, stop_early=target.stop_early, device=x.device)
    while (rows := active.next_rows()) is not None:
        candidate = surface_noise(x[rows], threat=threat, rng=stream.select(rows), step=active.step[rows])
        reached = target.margin(target.scores(candidate), y[rows])
        best.offer(rows, candidate, reached)
        active.advance(rows, reached > 0)
    return Attempt(best.examples, active.first_success, active.step)


def surface_noise(x: Tensor, *, threat: ThreatModel, rng: PointRNG, step: int | Tensor = 0) -> Tensor:
    """One admissible point per clean point (N, …): a random corner (Linf) or direction (L2) of the ball."""
    shape = x.shape[1:]
    if threat.norm == "Linf":
        return threat.project(x + threat.eps * rng.signs(shape, step=step).to(x), x)
    direction = rng.normal(shape, step=step).to(x)
    scale = threat.eps / per_point_norm(direction).clamp_min(torch.finfo(x.dtype).tiny)
    return threat.project(x + direction * scale.view(-1, *[1] * (x.dim() - 1)), x)
