"""What an attack is, and the active set that all of them work on.

An attack is a plain function

    attack(target, x, y, *, threat, rng, …) -> Attempt

for points `x` (N, …) that the target classifies as `y` (N,). It never decides
whether a point is broken: it returns its best candidate per point, and code that
did not make it scores the candidate afresh (`maskaudit.rescore`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskaudit.results import Role


@dataclass(frozen=True)
class Attempt:
    """What an attack brings home.

    Attributes:
        examples: the best candidate per point, admissible, shape of `x` (N, …).
        first_success: step at which the attack itself first saw the point broken, int64 (N,), −1 if never;
            steps count the attack's own unit (gradient steps or queries).
        queries: model evaluations spent per point, int64 (N,).
    """

    examples: Tensor
    first_success: Tensor
    queries: Tensor


class AttackUnavailable(Exception):
    """Raised by an attack that cannot run here, for example without its library; the message says what to do."""


@dataclass(frozen=True)
class AttackSpec:
    """A registered attack with fixed settings.

    Attributes:
        name: identifier in reports and for `--attack`.
        title: one line for people.
        kind: "gradient", "score", "decision", "transfer", "random" or "external".
        role: which family it counts for (design: R₀, G*, C).
        run: the attack function.
        settings: keyword arguments passed to `run`.
        loss_family: "ce" when it follows the gradient of untargeted cross-entropy (CE*), else "".
        sources: citations.
    """

    name: str
    title: str
    kind: str
    role: Role
    run: Callable[..., Attempt]
    settings: dict[str, Any] = field(default_factory=dict)
    loss_family: str = ""
    sources: tuple[str, ...] = ()


class ActiveSet:
    """Which points are still worth a pass: broken and exhausted points leave, waiting points move up.

    Args:
        n: number of points.
        limit: steps each point may take.
        batch_size: points per step.
        stop_early: whether `update` drops points as soon as they are broken.
        device: where indices live.

    Use::

        active = ActiveSet(len(x), limit=steps, batch_size=target.batch_size, stop_early=target.stop_early)
        while (rows := active.next_rows()) is not None:
            …one step for x[rows], whose step numbers are active.step[rows]…
            active.advance(rows, broken)
    """

    def __init__(self, n: int, *, limit: int, batch_size: int, stop_early: bool, device: torch.device | str = "cpu"):
        self.step = torch.zeros(n, dtype=torch.int64, device=device)
        self.first_success = torch.full((n,), -1, dtype=torch.int64, device=device)
        self.alive = torch.ones(n, dtype=torch.bool, device=device)
        self.limit, self.batch_size, self.stop_early = limit, batch_size, stop_early
        if limit <= 0:
            self.alive.zero_()

    def next_rows(self) -> Tensor | None:
        """Indices of the next batch (lowest numbers first), or None when nothing is left to do."""
        rows = self.alive.nonzero().squeeze(1)[: self.batch_size]
        return rows if len(rows) else None

    def advance(self, rows: Tensor, broken: Tensor, *, cost: int | Tensor = 1) -> None:
        """Count `cost` steps for `rows` and note which of them are now broken (bool, same length)."""
        self.step[rows] += cost
        first = broken & (self.first_success[rows] < 0)
        self.first_success[rows[first]] = self.step[rows[first]]
        finished = self.step[rows] >= self.limit
        if self.stop_early:
            finished = finished | broken
        self.alive[rows[finished]] = False


class BestCandidates:
    """Per point the candidate with the largest breaking margin seen so far."""

    def __init__(self, x: Tensor):
        self.examples = x.clone()
        self.margin = torch.full((len(x),), -torch.inf, device=x.device)

    @classmethod
    def of(cls, examples: Tensor, margin: Tensor) -> BestCandidates:
        """Candidates (N, …) held already, with their margins (N,); both are taken over."""
        held = cls(examples[:0])
        held.examples, held.margin = examples, margin
        return held

    def offer(self, rows: Tensor, examples: Tensor, margin: Tensor) -> None:
        """Keep `examples` (len(rows), …) where their `margin` (len(rows),) beats what is held."""
        better = margin > self.margin[rows]
        self.examples[rows[better]] = examples[better]
        self.margin[rows[better]] = margin[better]
