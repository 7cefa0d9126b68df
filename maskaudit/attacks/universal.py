"""Perturbations that broke other points: what is hidden by one trick is often opened by one key.

S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard, "Universal adversarial perturbations", 2017, show that single
perturbations fool networks on most inputs. A backdoor or a planted counterexample is an extreme case: no slope leads
there from most points, but once found it is found for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.resident import ResidentBatch, SlotState
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel


def universal(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, perturbations: Tensor
) -> Attempt:
    """Every perturbation on every point, in the given order, the best margin kept; nothing is random.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        perturbations: (K, …), projected onto each point's ball.

    Returns:
        The candidate with the largest breaking margin; `first_success` counts perturbations.
    """
    batch = ResidentBatch.on(target, x, y, limit=len(perturbations), enter=lambda points: _State(x[points]))
    while len(batch):
        turn = batch.number.clamp_max(len(perturbations) - 1)  # a point that is done keeps its slot until a look
        candidate = threat.project(batch.state.clean + perturbations[turn], batch.state.clean)
        reached = target.margin(target.scores(candidate), y[batch.points])
        batch.offer(candidate, reached)
        batch.advance(reached > 0)
    return batch.finish()


def keys(x: Tensor, examples: Tensor, threat: ThreatModel, most: int) -> Tensor:
    """Perturbations (K, …), K ≤ `most`, that led from `x` (n, …) to `examples`: their mean, then single ones.

    All have full size: ε times the sign of every coordinate that moved (Linf), the direction at length ε (L2). The
    single ones are spread evenly over the points.
    """
    moved = examples - x
    chosen = moved[:: -(-len(moved) // (most - 1))]
    ahead = threat.full_size(moved).mean(dim=0, keepdim=True)
    every = threat.full_size(ahead), threat.full_size(chosen)
    return threat.eps * torch.cat(every)


@dataclass
class _State(SlotState):
    """Per slot: the clean point, (b, …)."""

    clean: Tensor
