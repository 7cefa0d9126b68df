"""Transfer: gradients of other models, judged by the target's answers.

N. Papernot, P. McDaniel, I. Goodfellow, "Transferability in machine learning", 2016; momentum
against over-fitting to the surrogate from Y. Dong et al., "Boosting adversarial attacks with
momentum", 2018 (Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskaudit.attacks.interface import ActiveSet, Attempt, BestCandidates
from maskaudit.attacks.losses import targeted_margin, wrong_class
from maskaudit.attacks.noise import surface_noise
from maskaudit.errors import UsageError
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

#: First step of a restart in units of ε; later steps shrink linearly to a tenth of it.
FIRST_STEP = 0.5
#: Weight of the former gradients (Dong et al. 2018 use 1).
MOMENTUM = 0.9


def transfer(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    rng: PointRNG,
    surrogates: Sequence[Target],
    steps: int = 20,
    restarts: int = 6,
) -> Attempt:
    """Momentum ascent on the surrogates' margin; every iterate is shown to the target.

    Restart k goes through surrogate k mod S. The first restart of each surrogate starts at the clean
    point and follows the untargeted margin; later ones start on the ball's surface and head for the
    surrogate's runner-up class, then the class after it, and so on.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        surrogates: models in the same bounds and with the same classes; their passes are counted
            in their own ledgers.
        steps: surrogate gradients, and target evaluations, per restart.
        restarts: restarts per point.

    Returns:
        The iterate with the largest breaking margin on the target; `first_success` counts target
        evaluations, as does `queries`.

    Raises:
        UsageError: without a surrogate.
    """
    if not surrogates:
        raise UsageError("The transfer attack needs at least one surrogate, got none.")
    streams = rng.fork("transfer")
    best = BestCandidates(x)
    iterate, direction = x.clone(), torch.zeros_like(x)
    active = ActiveSet(
        len(x),
        limit=steps * restarts,
        batch_size=target.batch_size,
        stop_early=target.stop_early,
        device=x.device,
    )
    goals = [_ranked_classes(surrogate, x, y) for surrogate in surrogates]
    while (rows := active.next_rows()) is not None:
        restart, turn = active.step[rows] // steps, active.step[rows] % steps
        fresh = rows[turn == 0]
        if len(fresh):
            iterate[fresh] = _restart_point(
                x[fresh], restart[turn == 0] < len(surrogates), threat, streams, fresh, active
            )
            direction[fresh] = 0.0
        gradient = torch.zeros_like(x[rows])
        for number, surrogate in enumerate(surrogates):
            here = restart % len(surrogates) == number
            if bool(here.any()):
                part, attempt = rows[here], restart[here] // len(surrogates)
                gradient[here] = _surrogate_gradient(surrogate, iterate[part], y[part], attempt, goals[number][part])
        length = threat.dual_norm(gradient).view(-1, *[1] * (x.dim() - 1))
        ahead = MOMENTUM * direction[rows] + gradient / length.clamp_min(1e-30)
        direction[rows] = ahead
        size = FIRST_STEP * threat.eps * (1 - 0.9 * turn / steps).to(x).view_as(length)
        candidate = threat.project(iterate[rows] + size * threat.step_direction(ahead), x[rows])
        iterate[rows] = candidate
        reached = target.margin(target.scores(candidate), y[rows])
        best.offer(rows, candidate, reached)
        active.advance(rows, reached > 0)
    return Attempt(best.examples, active.first_success, active.step)


def _ranked_classes(surrogate: Target, x: Tensor, y: Tensor) -> Tensor:
    """The wrong classes of each clean point from the likeliest on, by the surrogate, (N, K − 1)."""
    scores = surrogate.scores(x)
    ranks = [wrong_class(scores, y, rank, surrogate.reject_class) for rank in range(scores.shape[1] - 1)]
    return torch.stack(ranks, dim=1)


def _restart_point(
    clean: Tensor, first: Tensor, threat: ThreatModel, streams: PointRNG, rows: Tensor, active: ActiveSet
) -> Tensor:
    """The clean point for first restarts (bool (n,)), a random point of the ball's surface otherwise."""
    noisy = surface_noise(clean, threat=threat, rng=streams.select(rows), step=active.step[rows])
    return torch.where(first.view(-1, *[1] * (clean.dim() - 1)), clean, noisy)


def _surrogate_gradient(surrogate: Target, x: Tensor, y: Tensor, attempt: Tensor, classes: Tensor) -> Tensor:
    """Gradient of the untargeted margin (attempt 0) or of the margin towards the attempt-th wrong class, (n, …)."""
    goal = classes.gather(1, ((attempt - 1).clamp_min(0) % classes.shape[1])[:, None]).squeeze(1)

    def objective(scores: Tensor, at: Tensor) -> Tensor:
        free = surrogate.margin(scores, y[at])
        return torch.where(attempt[at] == 0, free, targeted_margin(scores, y[at], goal[at]))

    return torch.nan_to_num(surrogate.value_and_grad(x, objective).grad, nan=0.0, posinf=0.0, neginf=0.0)
