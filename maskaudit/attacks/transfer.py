"""Transfer: gradients of other models, judged by the target's answers.

N. Papernot, P. McDaniel, I. Goodfellow, "Transferability in machine learning", 2016; momentum
against over-fitting to the surrogate from Y. Dong et al., "Boosting adversarial attacks with
momentum", 2018 (Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskaudit.attacks.ball import finite
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.losses import targeted_margin, wrong_class
from maskaudit.attacks.noise import surface_noise
from maskaudit.attacks.resident import ResidentBatch, SlotState, keep
from maskaudit.errors import UsageError
from maskaudit.rng import PointRNG
from maskaudit.sums import column
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

#: First step of a restart in units of ε; later steps shrink linearly to a tenth of it.
FIRST_STEP = 0.5
#: Weight of the former gradients (Dong et al. 2018 use 1).
MOMENTUM = 0.9


def transfer(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, surrogates: Sequence[Target],
    queries: int = 120, steps: int = 20,
) -> Attempt:  # fmt: skip
    """Momentum ascent on the surrogates' margin; every iterate is shown to the target.

    Restart k goes through surrogate k mod S. The first restart of each surrogate starts at the clean
    point and follows the untargeted margin; later ones start on the ball's surface and head for the
    surrogate's runner-up class, then the class after it, and so on.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        surrogates: models in the same bounds and with the same classes; their passes are counted
            in their own ledgers.
        queries: target evaluations per point, each after one gradient of a surrogate.
        steps: of these, up to the next restart.

    Returns:
        The iterate with the largest breaking margin on the target; `first_success` counts target
        evaluations, as does `queries`.

    Raises:
        UsageError: without a surrogate.
    """
    if not surrogates:
        raise UsageError("The transfer attack needs at least one surrogate, got none.")
    streams = rng.fork("transfer")
    goals = [_ranked_classes(surrogate, x, y) for surrogate in surrogates]
    restart_of = np.arange(queries + 1) // steps
    begins = np.arange(queries + 1) % steps == 0

    def enter(points: Tensor) -> _State:
        return _State(x[points], x[points], torch.zeros_like(x[points]))

    batch = ResidentBatch.on(target, x, y, limit=queries, enter=enter)
    while len(batch):
        state, points = batch.state, batch.points
        restart, turn = batch.number // steps, batch.number % steps
        if batch.any_at(begins):
            begin = _restart_point(state.clean, restart < len(surrogates), threat, streams.select(points), batch.number)
            keep(turn == 0, begin, state.iterate)
            state.direction.masked_fill_(column(turn == 0, x), 0.0)
        gradient = torch.empty_like(state.iterate)
        for number, surrogate in enumerate(surrogates):
            here = restart_of % len(surrogates) == number
            if batch.any_at(here):
                slots = batch.slots_at(here)
                part, attempt = points[slots], restart[slots] // len(surrogates)
                found = _surrogate_gradient(surrogate, state.iterate[slots], y[part], attempt, goals[number][part])
                gradient[slots] = found
        length = threat.dual_norm(gradient)
        state.direction.mul_(MOMENTUM).add_(gradient / column(length.clamp_min(1e-30), x))
        size = FIRST_STEP * threat.eps * (1 - 0.9 * turn / steps).to(x)
        ahead = threat.step_direction(state.direction)
        state.iterate = threat.project(state.iterate + column(size, x) * ahead, state.clean)
        reached = target.margin(target.scores(state.iterate), y[points])
        batch.offer(state.iterate, reached)
        batch.advance(reached > 0)
    return batch.finish()


@dataclass
class _State(SlotState):
    """Per slot: the clean point, the iterate and the accumulated direction, (b, …)."""

    clean: Tensor
    iterate: Tensor
    direction: Tensor


def _ranked_classes(surrogate: Target, x: Tensor, y: Tensor) -> Tensor:
    """The wrong classes of each clean point from the likeliest on, by the surrogate, (N, K − 1)."""
    scores = surrogate.scores(x)
    ranks = [wrong_class(scores, y, rank, surrogate.reject_class) for rank in range(scores.shape[1] - 1)]
    return torch.stack(ranks, dim=1)


def _restart_point(clean: Tensor, first: Tensor, threat: ThreatModel, draws: PointRNG, number: Tensor) -> Tensor:
    """The clean point for first restarts (bool (b,)), a random point of the ball's surface otherwise, (b, …)."""
    return torch.where(column(first, clean), clean, surface_noise(clean, threat=threat, rng=draws, step=number))


def _surrogate_gradient(surrogate: Target, x: Tensor, y: Tensor, attempt: Tensor, classes: Tensor) -> Tensor:
    """Gradient of the untargeted margin (attempt 0) or of the margin towards the attempt-th wrong class, (n, …)."""
    goal = classes.gather(1, ((attempt - 1).clamp_min(0) % classes.shape[1])[:, None]).squeeze(1)

    def objective(scores: Tensor, at: Tensor) -> Tensor:
        free = surrogate.margin(scores, y[at])
        return torch.where(attempt[at] == 0, free, targeted_margin(scores, y[at], goal[at]))

    return finite(surrogate.value_and_grad(x, objective).grad)
