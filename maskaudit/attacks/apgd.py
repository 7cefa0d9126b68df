"""Auto-PGD (Croce & Hein 2020, "Reliable evaluation of adversarial robustness…", algorithm 1), per point.

Every point carries its own step size, best iterate and step counter, so a point
that joins the batch later lives through the same schedule as one that started
first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.attacks.interface import ActiveSet, Attempt, BestCandidates
from maskaudit.attacks.losses import Loss, build_objective
from maskaudit.attacks.pgd import random_start
from maskaudit.rng import PointRNG
from maskaudit.target import Objective, Target
from maskaudit.threat import ThreatModel, per_point_norm

MOMENTUM = 0.75  # α of eq. 2
SUCCESS_SHARE = 0.75  # ρ of condition 1
FIRST_CHECKPOINT = 0.22  # p₁
CHECKPOINT_SHRINK = 0.03
CHECKPOINT_MIN = 0.06


def checkpoints(steps: int) -> list[int]:
    """Steps w_j at which the step size may be halved: p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06)."""
    p = [0.0, FIRST_CHECKPOINT]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - CHECKPOINT_SHRINK, CHECKPOINT_MIN))
    marks = sorted({math.ceil(round(share * steps, 6)) for share in p[1:] if share <= 1})
    return [mark for mark in marks if 0 < mark <= steps]


def apgd(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    rng: PointRNG,
    loss: Loss = "ce",
    steps: int = 50,
    restarts: int = 1,
    targets: int = 1,
) -> Attempt:
    """Auto-PGD on a loss of `maskaudit.attacks.losses`.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        steps: gradient steps per run.
        restarts: independent random starts; only points still standing go on to the next
            (all points where early stopping is off).
        targets: for targeted losses, the number of wrong classes tried in turn, most likely first.

    Returns:
        Best candidate per point; `first_success` counts gradient steps over all runs.
    """
    clean_scores = target.scores(x)
    best = BestCandidates(x)
    spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    first = torch.full_like(spent, -1)
    runs = targets if loss.startswith("targeted") else 1
    standing = torch.arange(len(x), device=x.device)
    for run in range(restarts * runs):
        objective = build_objective(
            loss, y[standing], clean_scores[standing], target_rank=run % runs, reject_class=target.reject_class
        )
        active = _single_run(
            target, x[standing], y[standing], objective, best, standing,
            threat=threat, rng=rng.select(standing).fork(f"run {run}"), steps=steps,
        )  # fmt: skip
        hit = (active.first_success >= 0) & (first[standing] < 0)
        first[standing[hit]] = spent[standing[hit]] + active.first_success[hit]
        spent[standing] += active.step
        if target.stop_early:
            standing = standing[active.first_success < 0]
        if not len(standing):
            break
    return Attempt(best.examples, first, spent)


@dataclass
class _State:
    """Per-point state of algorithm 1; all tensors have the points in their first dimension."""

    current: Tensor
    previous: Tensor
    best: Tensor
    best_grad: Tensor
    best_value: Tensor
    last_value: Tensor
    eta: Tensor
    rises: Tensor
    window: Tensor
    eta_at_mark: Tensor
    best_at_mark: Tensor

    @classmethod
    def start(cls, x0: Tensor, eps: float) -> _State:
        n = len(x0)
        low = torch.full((n,), -torch.inf, device=x0.device)
        zero = torch.zeros(n, dtype=torch.int64, device=x0.device)
        eta = torch.full((n,), 2 * eps, device=x0.device)
        return cls(
            x0.clone(), x0.clone(), x0.clone(), torch.zeros_like(x0), low.clone(), low.clone(),
            eta, zero.clone(), zero.clone(), eta.clone(), low.clone(),
        )  # fmt: skip


def _single_run(
    target: Target, x: Tensor, y: Tensor, objective: Objective, best: BestCandidates, points: Tensor,
    *, threat: ThreatModel, rng: PointRNG, steps: int,
) -> ActiveSet:  # fmt: skip
    state = _State.start(random_start(x, threat=threat, rng=rng), threat.eps)
    marks = torch.zeros(steps + 2, dtype=torch.bool, device=x.device)
    marks[checkpoints(steps)] = True
    active = ActiveSet(
        len(x), limit=steps + 1, batch_size=target.batch_size, stop_early=target.stop_early, device=x.device
    )
    while (rows := active.next_rows()) is not None:
        current = state.current[rows]
        result = target.value_and_grad(current, lambda s, r, rows=rows: objective(s, rows[r]))  # type: ignore[misc]
        reached = target.margin(result.scores, y[rows])
        best.offer(points[rows], current, reached)
        gradient = torch.nan_to_num(result.grad, nan=0.0, posinf=0.0, neginf=0.0)
        gradient = _observe(state, rows, current, result.value, gradient)
        number = active.step[rows]
        gradient = _maybe_halve(state, rows, marks[number], gradient)
        _move(state, rows, x[rows], gradient, number == 0, threat)
        active.advance(rows, reached > 0)
    return active


def _observe(state: _State, rows: Tensor, current: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Book the value of the current iterate: rises since the last checkpoint, best iterate so far."""
    stepped = state.last_value[rows] > -torch.inf  # the starting point is not a step
    state.rises[rows] += (stepped & (value > state.last_value[rows])).long()
    state.window[rows] += stepped.long()
    state.last_value[rows] = value
    better = value > state.best_value[rows]
    improved = rows[better]
    state.best[improved] = current[better]
    state.best_grad[improved] = gradient[better]
    state.best_value[improved] = value[better]
    return gradient


def _maybe_halve(state: _State, rows: Tensor, at_mark: Tensor, gradient: Tensor) -> Tensor:
    """At a checkpoint: halve η and return to the best iterate if progress stalled (conditions 1 and 2)."""
    marked = rows[at_mark]
    if not len(marked):
        return gradient
    few_rises = state.rises[marked] < SUCCESS_SHARE * state.window[marked]
    unchanged = (state.eta[marked] == state.eta_at_mark[marked]) & (
        state.best_value[marked] <= state.best_at_mark[marked]
    )
    halve = few_rises | unchanged
    state.eta_at_mark[marked] = state.eta[marked]
    state.best_at_mark[marked] = state.best_value[marked]
    state.rises[marked] = 0
    state.window[marked] = 0
    halved = marked[halve]
    state.eta[halved] /= 2
    state.current[halved] = state.best[halved]
    state.previous[halved] = state.best[halved]
    position = at_mark.nonzero().squeeze(1)[halve]
    gradient = gradient.clone()
    gradient[position] = state.best_grad[halved]
    return gradient


def _move(
    state: _State, rows: Tensor, clean: Tensor, gradient: Tensor, first_step: Tensor, threat: ThreatModel
) -> None:
    """One step with momentum (eq. 1 and 2); the first step has none."""
    current, previous = state.current[rows], state.previous[rows]
    shape = (-1, *[1] * (clean.dim() - 1))
    eta = state.eta[rows].view(shape).to(clean.dtype)
    z = _project(current + eta * threat.step_direction(gradient), clean, threat)
    weight = torch.where(first_step, 1.0, MOMENTUM).view(shape).to(clean.dtype)
    moved = _project(current + weight * (z - current) + (1 - weight) * (current - previous), clean, threat)
    state.previous[rows] = current
    state.current[rows] = moved


def _project(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Admissible point; for L2 the radius is restored after clipping, so that steps are not wasted on the box."""
    projected = threat.project(x_adv, x)
    if threat.norm == "Linf":
        return projected
    delta = projected - x
    length = per_point_norm(delta)
    wanted = per_point_norm(x_adv - x).clamp_max(threat.eps)
    grow = (wanted / length.clamp_min(1e-12)).clamp(1.0, 2.0).view(-1, *[1] * (x.dim() - 1))
    return threat.project(x + delta * grow, x)
