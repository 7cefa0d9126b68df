"""Auto-PGD (Croce & Hein 2020, "Reliable evaluation of adversarial robustness…", algorithm 1), per point.

Every point carries its own step size, best iterate and step counter, so a point
that joins the batch later lives through the same schedule as one that started
first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskaudit.attacks.ball import Ball, finite
from maskaudit.attacks.interface import Attempt, BestCandidates
from maskaudit.attacks.losses import Loss, build_objective
from maskaudit.attacks.pgd import random_start
from maskaudit.attacks.resident import ResidentBatch, SlotState, keep
from maskaudit.rng import PointRNG
from maskaudit.sums import column
from maskaudit.target import Objective, Target
from maskaudit.threat import ThreatModel

MOMENTUM = 0.75  # α of eq. 2
SUCCESS_SHARE = 0.75  # ρ of condition 1
FIRST_CHECKPOINT = 0.22  # p₁
CHECKPOINT_SHRINK = 0.03
CHECKPOINT_MIN = 0.06

#: Runs go together up to so many points: below, a pass costs the more per point the fewer there are.
TOGETHER = 64


def checkpoints(steps: int) -> list[int]:
    """Steps w_j at which the step size may be halved: p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06)."""
    p = [0.0, FIRST_CHECKPOINT]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - CHECKPOINT_SHRINK, CHECKPOINT_MIN))
    marks = sorted({math.ceil(round(share * steps, 6)) for share in p[1:] if share <= 1})
    return [mark for mark in marks if 0 < mark <= steps]


def apgd(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, loss: Loss = "ce", steps: int = 50,
    restarts: int = 1, targets: int = 1, starts: Tensor | None = None, reach: float | None = None,
) -> Attempt:  # fmt: skip
    """Auto-PGD on cross-entropy or another loss (Croce & Hein 2020).

    Later runs meet only the points not broken yet (of a random model all that are not broken beyond doubt). Where few
    are left, several runs share a batch of 64; what comes out is the same.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        steps: gradient steps per run.
        restarts: independent random starts.
        targets: for targeted losses, the number of wrong classes tried, most likely first.
        starts: points (N, …) at which the runs of the first restart begin, moved into ball and bounds first;
            without them, and in later restarts, runs begin at random.
        reach: a run gives a point up at the first checkpoint where the best candidate's margin is still more than this
            share of the clean point's: where the margin falls evenly along the way, the point is broken only in a ball
            1 / (1 − reach) times as large. None: every run makes all its steps.

    Returns:
        Best candidate per point; `first_success` counts gradient steps over all runs.
    """
    clean_scores = target.scores(x)
    least = None if reach is None else reach * target.margin(clean_scores, y)
    best = BestCandidates(x)
    spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    first = torch.full_like(spent, -1)
    targets = targets if loss.startswith("targeted") else 1
    unbroken = torch.arange(len(x), device=x.device)
    run = 0
    while run < restarts * targets and len(unbroken):
        together = range(run, min(restarts * targets, run + max(1, min(TOGETHER, target.batch_size) // len(unbroken))))
        rows = unbroken.repeat(len(together))
        ranks = torch.tensor([r % targets for r in together], device=x.device).repeat_interleave(len(unbroken))
        held = BestCandidates.of(best.examples[rows], best.margin[rows])
        begins = [
            threat.project(starts[unbroken], x[unbroken])
            if starts is not None and r < targets
            else random_start(x[unbroken], threat=threat, rng=rng.select(unbroken).fork(f"run {r}"), at_surface=True)
            for r in together
        ]
        attempt, settled = _runs(
            target, x[rows], y[rows], torch.cat(begins),
            build_objective(loss, y[rows], clean_scores[rows], target_rank=ranks, reject_class=target.reject_class),
            held, threat=threat, steps=steps, least=None if least is None else least[rows],
        )  # fmt: skip
        on = torch.ones_like(unbroken, dtype=torch.bool)  # a run counts as if the ones before it had been waited for
        for part in torch.arange(len(rows), device=x.device).view(len(together), -1):
            best.offer(unbroken, held.examples[part], held.margin[part].masked_fill(~on, -torch.inf))
            hit = on & (attempt.first_success[part] >= 0) & (first[unbroken] < 0)
            first[unbroken] = torch.where(hit, spent[unbroken] + attempt.first_success[part], first[unbroken])
            spent[unbroken] += torch.where(on, attempt.queries[part], 0)
            on &= ~settled[part]
        unbroken = unbroken[on]
        run = together.stop
    return Attempt(best.examples, first, spent)


@dataclass
class _State(SlotState):
    """State of algorithm 1 per slot; `ahead` is working space."""

    ball: Ball
    current: Tensor
    previous: Tensor
    ahead: Tensor
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
    def at(cls, first: Tensor, ball: Ball) -> _State:
        low = torch.full((len(first),), -torch.inf, device=first.device)
        zero = torch.zeros(len(first), dtype=torch.int64, device=first.device)
        eta = torch.full((len(first),), 2 * ball.threat.eps, device=first.device, dtype=first.dtype)
        return cls(
            ball, first.clone(), first.clone(), first.clone(), first.clone(), torch.zeros_like(first),
            low.clone(), low.clone(), eta, zero.clone(), zero.clone(), eta.clone(), low.clone(),
        )  # fmt: skip


def _runs(
    target: Target, x: Tensor, y: Tensor, begins: Tensor, objective: Objective, best: BestCandidates,
    *, threat: ThreatModel, steps: int, least: Tensor | None,
) -> tuple[Attempt, Tensor]:  # fmt: skip
    """One run per row from where it begins, and which rows need no further one, bool (N,)."""
    marks = np.zeros(steps + 2, dtype=bool)  # on the host, with a copy where the slots are
    marks[checkpoints(steps)] = True
    marks_here = torch.from_numpy(marks).to(x.device)
    batch = ResidentBatch.on(
        target, x, y, limit=steps + 1, best=best,
        enter=lambda points: _State.at(begins[points], Ball.around(x[points], threat)),
    )  # fmt: skip
    while len(batch):
        state, points = batch.state, batch.points
        result = target.value_and_grad(state.current, lambda s, r, points=points: objective(s, points[r]))  # type: ignore[misc]
        reached = target.margin(result.scores, y[points])
        batch.offer(state.current, reached)
        gradient = finite(result.grad)
        _observe(state, result.value, gradient)
        if batch.any_at(marks):
            at_mark = marks_here[batch.number]
            gradient = _maybe_halve(state, at_mark, gradient)
            if least is not None:
                batch.give_up(at_mark & (batch.held < least[points]))
        _move(state, gradient, batch.number == 0)
        batch.advance(reached > 0)
    return batch.finish(), batch.settled


def _observe(state: _State, value: Tensor, gradient: Tensor) -> None:
    """Book the value of the current iterate: rises since the last checkpoint, best iterate so far."""
    stepped = state.last_value > -torch.inf  # the starting point is not a step
    state.rises += stepped & (value > state.last_value)
    state.window += stepped
    state.last_value.copy_(value)
    better = value > state.best_value
    keep(better, state.current, state.best)
    keep(better, gradient, state.best_grad)
    keep(better, value, state.best_value)


def _maybe_halve(state: _State, at_mark: Tensor, gradient: Tensor) -> Tensor:
    """At a checkpoint: halve η and return to the best iterate if progress stalled (conditions 1 and 2)."""
    few_rises = state.rises < SUCCESS_SHARE * state.window
    unchanged = (state.eta == state.eta_at_mark) & (state.best_value <= state.best_at_mark)
    halve = at_mark & (few_rises | unchanged)
    keep(at_mark, state.eta, state.eta_at_mark)
    keep(at_mark, state.best_value, state.best_at_mark)
    state.rises.masked_fill_(at_mark, 0)
    state.window.masked_fill_(at_mark, 0)
    keep(halve, state.eta / 2, state.eta)
    keep(halve, state.best, state.current)
    keep(halve, state.best, state.previous)
    gradient = gradient.clone()  # the model may hold on to its own
    keep(halve, state.best_grad, gradient)
    return gradient


def _move(state: _State, gradient: Tensor, first_step: Tensor) -> None:
    """One step with momentum (eq. 1 and 2), written over the iterate before last; the first step has none.

    Eq. 2 in the form (1 − α)·(2·x_k − x_{k−1}) + α·z, two interpolations in place.
    """
    ahead = state.ball.step(state.current, gradient, state.eta, out=state.ahead, full=True)
    weight = column(torch.where(first_step, 1.0, MOMENTUM).to(ahead.dtype), ahead)
    moved = state.previous
    moved.lerp_(state.current, 2.0)
    moved.lerp_(ahead, weight)
    state.ball.project_full_(moved)
    state.previous, state.current = state.current, moved
