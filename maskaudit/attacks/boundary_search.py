"""The search of the decision-based attack: what a point does with its next query.

Every point keeps an *anchor* and a *radius*: `State.path(anchor, r)` is the anchor moved into the
ball of radius r around the clean point, and it is known to be of another class at the radius held.
A point starts from inputs of other classes, bisects the radius, and explores; only exploring,
that is how new anchors are proposed, differs between the methods (`SignFlips`, `BoundaryWalk`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from maskaudit.rng import PointRNG
from maskaudit.threat import ThreatModel, per_point_norm

#: What a point does with its next query.
START, BISECT, EXPLORE = 0, 1, 2

#: The radius is searched down to this share of ε, …
RADIUS_TOLERANCE = 1 / 16
#: … and to this share of itself for HopSkipJump, whose gradient is taken close to the boundary.
BOUNDARY_TOLERANCE = 1 / 100
#: RayS: share of the proposals that may change the anchor without bringing it nearer.
DRIFT = 0.5
#: HopSkipJump: directions in the first gradient estimate, √t times as many in round t (section 4.3), at most …
FIRST_DIRECTIONS, MOST_DIRECTIONS = 30, 200
#: HopSkipJump: length of a probing step as a share of the radius; the paper's 1/D is too short on
#: rounded inputs and this is used when it is larger.
PROBE_SHARE = 1 / 20
#: HopSkipJump: halvings of the step along the estimated gradient before a new estimate is made.
HALVINGS = 8


@dataclass(frozen=True)
class Starts:
    """Starting points of other classes.

    Attributes:
        pool: inputs (M, …).
        member: indices into the pool per point, nearest first, int64 (N, S).
    """

    pool: Tensor
    member: Tensor

    @property
    def count(self) -> int:
        """S, the number of starting points per point."""
        return self.member.shape[1]

    def get(self, rows: Tensor, number: Tensor) -> Tensor:
        """The `number`-th (n,) starting point of each of the rows, the last one when there are fewer, (n, …)."""
        return self.pool[self.member[rows, number.clamp_max(self.count - 1)]]


class Walk(Protocol):
    """How new places on the boundary are proposed."""

    @property
    def tolerance(self) -> Tensor:
        """Width of the interval of radii at which a bisection ends, per point (N,)."""

    def propose(self, rows: Tensor) -> Tensor:
        """A candidate (n, …) for each of the rows."""

    def learn(self, rows: Tensor, candidate: Tensor, crossed: Tensor) -> None:
        """Take notice of which candidates were of another class."""


class State:
    """Per point: the anchor, the radius at which it is known to be of another class, and the current task."""

    def __init__(self, x: Tensor, threat: ThreatModel, starts: Starts, rng: PointRNG) -> None:
        n = len(x)
        self.x, self.threat, self.starts, self.rng = x, threat, starts, rng
        self.anchor = x.clone()
        self.radius = torch.full((n,), torch.inf, device=x.device)
        self.lower = torch.full((n,), threat.eps, device=x.device)  # radius known or presumed not to do
        self.at_eps = torch.zeros(n, dtype=torch.bool, device=x.device)  # the ball itself is asked next
        self.task = torch.full((n,), START, dtype=torch.int64, device=x.device)
        self.tried = torch.zeros(n, dtype=torch.int64, device=x.device)  # starting points so far

    def path(self, rows: Tensor, anchor: Tensor, radius: Tensor) -> Tensor:
        """`anchor` (n, …) moved into the ball of `radius` (n,) around the clean points and into the bounds."""
        x = self.x[rows]
        bound = self.column(radius)
        if self.threat.norm == "Linf":
            return self.threat.clamp(torch.minimum(torch.maximum(anchor, x - bound), x + bound))
        delta = anchor - x
        length = self.column(per_point_norm(delta)).clamp_min(1e-12)
        return self.threat.clamp(torch.where(length > bound, x + delta * (bound / length), anchor))

    def length(self, rows: Tensor, point: Tensor) -> Tensor:
        """Distance of `point` from the clean points in the threat's norm, (n,)."""
        return self.threat.distance(point, self.x[rows]).to(point.dtype)

    def column(self, per_point: Tensor) -> Tensor:
        return per_point.view(-1, *[1] * (self.x.dim() - 1))

    def next_candidates(self, rows: Tensor, walk: Walk, step: Tensor) -> Tensor:
        """The input (n, …) that each row asks about."""
        task = self.task[rows]
        middle = torch.where(self.at_eps[rows], self.threat.eps, (self.lower[rows] + self.radius[rows]) / 2)
        candidate = self.path(rows, self.anchor[rows], middle)
        starting, exploring = task == START, task == EXPLORE
        if bool(starting.any()):
            some = rows[starting]
            candidate[starting] = self.path(some, self._start(some, step[starting]), self._beaten(some, walk))
        if bool(exploring.any()):
            candidate[exploring] = walk.propose(rows[exploring])
        return candidate

    def learn(self, rows: Tensor, candidate: Tensor, crossed: Tensor, walk: Walk) -> None:
        """Move every row on to its next task."""
        task = self.task[rows]
        exploring = task == EXPLORE
        if bool(exploring.any()):
            walk.learn(rows[exploring], candidate[exploring], crossed[exploring])

        bisecting = task == BISECT
        middle = self.length(rows, candidate)
        hit, miss = rows[bisecting & crossed], rows[bisecting & ~crossed]
        self.radius[hit] = torch.minimum(self.radius[hit], middle[bisecting & crossed])
        missed_at_eps = self.at_eps[miss]
        asked = (self.lower[miss] + self.radius[miss]) / 2
        self.lower[miss] = torch.where(missed_at_eps, self.lower[miss], asked)
        self.at_eps[rows[bisecting]] = False
        done = rows[bisecting]
        done = done[self.radius[done] - self.lower[done] <= walk.tolerance[done].clamp_min(0)]
        self.task[done] = torch.where(self._starts_left(done), START, EXPLORE)

        starting = task == START
        self.tried[rows[starting]] += 1
        self.accept(rows[starting & crossed], candidate[starting & crossed])
        missed = rows[starting & ~crossed]
        ready = torch.isfinite(self.radius[missed]) & ~self._starts_left(missed)
        self.task[missed[ready]] = EXPLORE

    def accept(self, rows: Tensor, anchor: Tensor) -> None:
        """Take a point (n, …) of another class as anchor and search its path, first at ε itself."""
        self.anchor[rows] = anchor
        self.radius[rows] = self.length(rows, anchor)
        self.lower[rows] = self.threat.eps
        self.at_eps[rows] = True
        self.task[rows] = BISECT

    def _starts_left(self, rows: Tensor) -> Tensor:
        return self.tried[rows] < self.starts.count

    def _beaten(self, rows: Tensor, walk: Walk) -> Tensor:
        """The radius that a new start must do with, (n,)."""
        held = self.radius[rows]
        return torch.where(torch.isfinite(held), held - walk.tolerance[rows], held)

    def _start(self, rows: Tensor, step: Tensor) -> Tensor:
        """The next starting point: from the pool, then uniform noise."""
        low, high = self.threat.bounds
        noise = low + (high - low) * self.rng.select(rows).uniform(self.x.shape[1:], step=step).to(self.x)
        if self.starts.count == 0:
            return noise
        return torch.where(self.column(self._starts_left(rows)), self.starts.get(rows, self.tried[rows]), noise)


class SignFlips:
    """RayS: anchors are corners of the box; blocks of coordinates go to the opposite side, coarse blocks first.

    Half of the proposals must cross at a radius below the one held, so that one query decides
    (RayS). The other half may cross at the radius held and then replace the anchor without bringing
    it nearer: greedy flips alone get stuck (digits, one-hot output, 1000 queries: 9 % of the points
    left, 3 % with the drift; RayS has none). After the finest blocks the sequence starts again with
    the blocks displaced.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        n, device = len(state.x), state.x.device
        self.dims = state.x[0].numel()
        self.cycle = 2 * 2 ** max(0, (self.dims - 1).bit_length()) - 1
        self.turn = torch.zeros(n, dtype=torch.int64, device=device)
        self.tolerance = torch.full((n,), RADIUS_TOLERANCE * state.threat.eps, device=device)
        self.rng = state.rng.fork("blocks")

    def propose(self, rows: Tensor) -> Tensor:
        state, turn = self.state, self.turn[rows]
        self.sideways = (self.rng.select(rows).uniform((), step=turn) < DRIFT) & (turn > 0)
        nearer = (state.radius[rows] - self.tolerance[rows]).clamp_min(state.threat.eps)
        self.pending = self._flipped(rows)
        return state.path(rows, self.pending, torch.where(self.sideways, state.radius[rows], nearer))

    def learn(self, rows: Tensor, candidate: Tensor, crossed: Tensor) -> None:
        self.turn[rows] += 1
        nearer = crossed & ~self.sideways
        self.state.accept(rows[nearer], candidate[nearer])
        self.state.anchor[rows[crossed]] = self.pending[crossed]

    def _flipped(self, rows: Tensor) -> Tensor:
        """The anchor with its current block turned to the other side of the box (n, …).

        The first proposal flips nothing: it moves every coordinate of the start to its side of the box.
        """
        state = self.state
        low, high = state.threat.bounds
        anchor, x = state.anchor[rows].flatten(1), state.x[rows].flatten(1)
        position, lap = self.turn[rows] % self.cycle + 1, self.turn[rows] // self.cycle
        level = torch.log2(position.double() + 0.5).floor().long()
        index = position - 2**level
        shift = torch.where(lap > 0, self.rng.select(rows).integers(self.dims, step=-lap), 0)
        place = (torch.arange(self.dims, device=rows.device) + shift[:, None]) % self.dims
        block = place * (2**level)[:, None] // self.dims == index[:, None]
        up = (anchor > x) | (anchor >= high)
        corner = torch.where(up, high, low)
        opposite = torch.where(up, low, high)
        first = (self.turn[rows] == 0)[:, None]
        still = (anchor == x) & (anchor < high) & (anchor > low)
        settled = torch.where(still, anchor, corner)
        return torch.where(first, settled, torch.where(block, opposite, anchor)).to(x.dtype).view_as(state.x[rows])


class BoundaryWalk:
    """HopSkipJump: the normal of the boundary from random probes, a step along it, back to the boundary."""

    def __init__(self, state: State) -> None:
        self.state = state
        x, n = state.x, len(state.x)
        zero = torch.zeros(n, dtype=torch.int64, device=x.device)
        self.round, self.probes, self.halvings = zero.clone() + 1, zero.clone(), zero.clone()
        self.drawn = zero.clone()
        self.probe_sum, self.crossed_sum = torch.zeros_like(x), torch.zeros_like(x)
        self.crossed_count = torch.zeros(n, device=x.device)
        self.rng = state.rng.fork("probes")

    @property
    def tolerance(self) -> Tensor:
        radius = torch.where(torch.isfinite(self.state.radius), self.state.radius, 0.0)
        return BOUNDARY_TOLERANCE * radius

    def propose(self, rows: Tensor) -> Tensor:
        state = self.state
        boundary, radius = state.path(rows, state.anchor[rows], state.radius[rows]), state.column(state.radius[rows])
        direction = self.rng.select(rows).normal(state.x.shape[1:], step=self.drawn[rows]).to(boundary)
        direction = direction / state.column(per_point_norm(direction))
        share = max(PROBE_SHARE, 1 / state.x[0].numel())
        length = share * state.column(per_point_norm(boundary - state.x[rows]))
        probe = state.threat.clamp(boundary + length * direction)
        self.pending = (probe - boundary) / length.clamp_min(1e-12)
        stepping = self._stepping(rows)
        if not bool(stepping.any()):
            return probe
        mean = state.column(self.crossed_count[rows] / self.probes[rows].clamp_min(1))
        normal = state.threat.step_direction(self.crossed_sum[rows] - mean * self.probe_sum[rows])
        size = radius / state.column((self.round[rows].double().sqrt() * 2.0 ** self.halvings[rows]).to(radius))
        step = state.threat.clamp(boundary + size * normal)
        return torch.where(state.column(stepping), step, probe)

    def learn(self, rows: Tensor, candidate: Tensor, crossed: Tensor) -> None:
        state, stepping = self.state, self._stepping(rows)
        probing = rows[~stepping]
        phi = torch.where(crossed, 1.0, -1.0).to(candidate)
        self.crossed_sum[probing] += (state.column(phi) * self.pending)[~stepping]
        self.probe_sum[probing] += self.pending[~stepping]
        self.crossed_count[probing] += phi[~stepping]
        self.probes[probing] += 1
        self.drawn[probing] += 1

        self.halvings[rows[stepping & ~crossed]] += 1
        state.accept(rows[stepping & crossed], candidate[stepping & crossed])
        over = rows[stepping & (crossed | (self.halvings[rows] >= HALVINGS))]
        self.round[over] += 1
        for counter in (self.probes, self.halvings, self.crossed_count, self.probe_sum, self.crossed_sum):
            counter[over] = 0

    def _stepping(self, rows: Tensor) -> Tensor:
        """Whether the estimate is complete and the next query goes along it, bool (n,)."""
        wanted = (FIRST_DIRECTIONS * self.round[rows].double().sqrt()).long().clamp_max(MOST_DIRECTIONS)
        return self.probes[rows] >= wanted
