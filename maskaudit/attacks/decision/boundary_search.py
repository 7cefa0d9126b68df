"""The search of the decision-based attack: what a point does with its next query.

Every point keeps an *anchor* and a *radius*: the anchor moved into the ball of that radius around the
clean point (`Search.path`) is known to be of another class. A point starts from inputs of other classes,
bisects the radius, and explores; only exploring, that is how new anchors are proposed, differs between
the methods (`maskaudit.attacks.decision.sign_flips`, `maskaudit.attacks.decision.boundary_walk`).

The points of one batch are at different tasks. A step computes what each task asks for, for all of them, and
takes for every point what it is at; tasks that no point is at are left out where that is free to know.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.attacks.resident import SlotState, keep
from maskaudit.rng import PointRNG
from maskaudit.target import accelerator
from maskaudit.threat import FARTHEST, ThreatModel, per_point_norm

#: What a point does with its next query: try a start, ask at ε itself, bisect the radius, explore.
START, AT_EPS, BISECT, EXPLORE = 0, 1, 2, 3


@dataclass(frozen=True)
class Starts:
    """Starting points of other classes.

    Attributes:
        pool: inputs (M, …).
        member: indices into the pool per point, nearest first, int64 (N, S).
    """

    pool: Tensor
    member: Tensor


@dataclass(frozen=True)
class Terrain:
    """What all points of a search share.

    Attributes:
        pool: inputs (M, …) that starts are taken from.
        rng: of all points (N,), for starts from noise.
        shape: of one input.
    """

    threat: ThreatModel
    pool: Tensor
    rng: PointRNG
    shape: torch.Size

    @property
    def dims(self) -> int:
        """Number of coordinates of one input."""
        return self.shape.numel()

    def column(self, per_point: Tensor) -> Tensor:
        """(b,) as something that broadcasts over (b, …)."""
        return per_point.view(-1, *[1] * len(self.shape))


class Proposals(SlotState, abc.ABC):
    """How new places on the boundary are proposed, for b slots."""

    @abc.abstractmethod
    def refresh(self) -> None:
        """Draw the random numbers of the next steps."""

    @abc.abstractmethod
    def aim(self, search: Search) -> tuple[Tensor, Tensor]:
        """Anchors (b, …) and radii (b,) whose paths exploring points take."""

    @abc.abstractmethod
    def leave(self, search: Search, on_path: Tensor) -> Tensor:
        """What exploring points ask about, given where their paths end, both (b, …)."""

    @abc.abstractmethod
    def learn(self, search: Search, exploring: Tensor, crossed: Tensor) -> Tensor:
        """Take notice of which answers were of another class; which candidates are to be anchors, bool (b,)."""

    @abc.abstractmethod
    def replace(self, search: Search, exploring: Tensor, crossed: Tensor) -> None:
        """Change anchors after those that `learn` named have been taken."""

    @abc.abstractmethod
    def tolerance(self, radius: Tensor) -> Tensor | float:
        """Width of the interval of radii at which a bisection ends, (b,) or a single number."""


@dataclass
class Search(SlotState):
    """Per slot: the clean point, the anchor, the radius that is known to do, and the current task.

    Attributes:
        ids: which of the points of `terrain.rng`, int64 (b,).
        lower: radius known or presumed not to do.
        members: starting points in the pool, nearest first, int64 (b, S).
        tried: starting points so far.
    """

    terrain: Terrain
    walk: Proposals
    ids: Tensor
    clean: Tensor
    anchor: Tensor
    radius: Tensor
    lower: Tensor
    task: Tensor
    members: Tensor
    tried: Tensor

    @classmethod
    def begin(cls, terrain: Terrain, ids: Tensor, clean: Tensor, members: Tensor, walk: Proposals) -> Search:
        """Points (b,) that have asked nothing yet."""
        none = torch.zeros(len(ids), dtype=torch.int64, device=clean.device)
        radius = torch.full((len(ids),), torch.inf, device=clean.device)
        lower = torch.full_like(radius, terrain.threat.eps)
        return cls(terrain, walk, ids, clean, clean.clone(), radius, lower, none + START, members, none.clone())

    def ask(self, number: Tensor) -> Tensor:
        """The input (b, …) that each point asks about; `number` int64 (b,) counts its queries."""
        terrain, task = self.terrain, self.task
        starting, exploring = task == START, task == EXPLORE
        some_start, some_explore = accelerator.perhaps(starting), accelerator.perhaps(exploring)
        anchor = self.anchor
        bound = torch.where(task == AT_EPS, terrain.threat.eps, (self.lower + self.radius) / 2)
        if some_start:
            anchor = torch.where(terrain.column(starting), self._start(starting, number), anchor)
            bound = torch.where(starting, self._beaten(), bound)
        if some_explore:
            aimed, reach = self.walk.aim(self)
            anchor = torch.where(terrain.column(exploring), aimed, anchor)
            bound = torch.where(exploring, reach, bound)
        candidate = self.path(anchor, bound)
        if some_explore:
            placed = self.walk.leave(self, candidate)
            if placed is not candidate:
                candidate = torch.where(terrain.column(exploring), placed, candidate)
        return candidate

    def learn(self, candidate: Tensor, length: Tensor, crossed: Tensor) -> None:
        """Move every point on to its next task.

        Args:
            candidate: what was asked about (b, …); length: its distance from the clean point (b,).
            crossed: whether it was of another class, bool (b,).
        """
        task = self.task
        starting, exploring = task == START, task == EXPLORE
        bisecting = ~(starting | exploring)
        middle = (self.lower + self.radius) / 2
        accepted = starting & crossed
        some_explore = accelerator.perhaps(exploring)
        if some_explore:
            accepted |= self.walk.learn(self, exploring, crossed)
        nearer = torch.where(bisecting & crossed, torch.minimum(self.radius, length), self.radius)
        self.radius = torch.where(accepted, length, nearer)
        missed = torch.where((task == BISECT) & ~crossed, middle, self.lower)
        self.lower = missed.masked_fill_(accepted, self.terrain.threat.eps)
        keep(accepted, candidate, self.anchor)
        if some_explore:
            self.walk.replace(self, exploring, crossed)

        self.tried += starting
        narrow = self.radius - self.lower <= self.walk.tolerance(self.radius)
        settled = (bisecting & narrow) | (starting & (self.radius < torch.inf))
        onwards = (self.tried >= self.members.shape[1]) * EXPLORE  # START is 0
        task = torch.where(settled, onwards, task.masked_fill(bisecting, BISECT))
        self.task = task.masked_fill_(accepted, AT_EPS)

    def path(self, anchor: Tensor, radius: Tensor) -> Tensor:
        """`anchor` (b, …) moved into the ball of `radius` (b,) around the clean points and into the bounds."""
        x, threat = self.clean, self.terrain.threat
        bound = self.terrain.column(radius)
        if threat.norm == "Linf" or threat.features is not None:
            reach = bound if threat.features is None else bound.clamp_max(FARTHEST) * threat.axes(x)
            inside = torch.clamp(anchor, x - reach, x + reach).clamp_(*threat.bounds)
            return inside if threat.norm == "Linf" else threat.project(inside, x, radius)
        delta = anchor - x
        length = self.terrain.column(per_point_norm(delta)).clamp_min(1e-12)
        return torch.where(length > bound, x + delta * (bound / length), anchor).clamp_(*threat.bounds)

    def _beaten(self) -> Tensor:
        """The radius that a new start must do with, (b,)."""
        held = self.radius
        return torch.where(held < torch.inf, held - self.walk.tolerance(held), held)

    def _start(self, starting: Tensor, number: Tensor) -> Tensor:
        """The next starting point (b, …): from the pool, then uniform noise."""
        count, terrain = self.members.shape[1], self.terrain
        left = self.tried < count
        if not count or accelerator.perhaps(starting & ~left):
            low, high = terrain.threat.bounds
            draw = terrain.rng.select(self.ids).uniform(terrain.shape, step=number).to(self.clean)
            noise = low + (high - low) * draw
            if not count:
                return noise
        chosen = self.members.gather(1, self.tried.clamp_max(count - 1)[:, None]).squeeze(1)
        member = terrain.pool[chosen]
        if not accelerator.perhaps(starting & ~left):
            return member
        return torch.where(terrain.column(left), member, noise)
