"""Decision-based attack: only the predicted class is looked at.

Saturated, rounded and one-hot outputs hide the way to the boundary from every attack that
compares scores; the boundary itself stays visible. The search starts from inputs that the
model puts into another class and moves towards the clean point until it is inside the ball.

L2: J. Chen, M. Jordan, M. Wainwright, "HopSkipJumpAttack: a query-efficient decision-based
attack", 2020 (Algorithm 2). Linf: J. Chen, Q. Gu, "RayS: a ray searching method for
hard-label adversarial attack", 2020 (Algorithms 2 and 3), with a drift (see `_SignFlips`): on the
digits it leaves fewer points than HopSkipJump after 1000 queries, in L2 it is the other way round.

Both keep, per point, an *anchor* and a *radius*: `path(anchor, r)` is the anchor moved into the
ball of radius r around the clean point, and is of another class at the radius held. What differs
is how new anchors are proposed. Every point spends one query per turn, whatever it is doing.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from maskaudit.attacks.interface import ActiveSet, Attempt, BestCandidates
from maskaudit.errors import UsageError
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel, per_point_norm

Method = Literal["auto", "rays", "hopskipjump"]

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


def decision_based(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    rng: PointRNG,
    queries: int = 1000,
    pool: Tensor | None = None,
    starts: int = 8,
    method: Method = "auto",
) -> Attempt:
    """Walk along the decision boundary from points of other classes into the ball.

    Args:
        x: clean points (N, …) in bounds; y: labels (N,).
        queries: evaluations per point.
        pool: inputs (M, …) of any class in the same bounds; the attack asks the model for their classes
            (M evaluations, not counted per point). Without it the search starts from uniform noise.
        starts: starting points tried: the nearest pool member of each of the `starts` nearest other classes.
        method: "rays", "hopskipjump", or "auto": RayS for Linf and HopSkipJump for L2.

    Returns:
        The admissible candidate with the largest breaking margin (the margin ranks candidates, it never
        steers the search); `first_success` counts queries.

    Raises:
        UsageError: for an unknown method.
    """
    if method == "auto":
        method = "rays" if threat.norm == "Linf" else "hopskipjump"
    anchors = nearest_of_other_classes(target, x, y, pool, starts)
    state = _State(x, threat, anchors, rng.fork("decision"))
    walk: _Walk
    if method == "rays":
        walk = _SignFlips(state)
    elif method == "hopskipjump":
        walk = _BoundaryWalk(state)
    else:
        raise UsageError(f"The decision-based method must be auto, rays or hopskipjump, got {method!r}.")
    best = BestCandidates(x)
    active = ActiveSet(
        len(x), limit=queries, batch_size=target.batch_size, stop_early=target.stop_early, device=x.device
    )
    while (rows := active.next_rows()) is not None:
        candidate = state.next_candidates(rows, walk, active.step[rows])
        margin = target.margin(target.scores(candidate), y[rows])
        crossed = margin > 0
        inside = threat.admissible(candidate, x[rows])
        best.offer(rows[inside], candidate[inside], margin[inside])
        state.learn(rows, candidate, crossed, walk)
        active.advance(rows, crossed & inside)
    return Attempt(best.examples, active.first_success, active.step)


def nearest_of_other_classes(target: Target, x: Tensor, y: Tensor, pool: Tensor | None, starts: int) -> Tensor:
    """For each point the nearest (L2) pool member of each of the nearest other classes, (N, S, …), S ≤ starts.

    A point for which the pool holds no other class gets itself, which no query will find broken.
    """
    if pool is None or len(pool) == 0:
        return x.unsqueeze(1)[:, :0]
    scores = target.scores(pool)
    predicted = target.predict(scores)
    distance = torch.cdist(x.flatten(1), pool.flatten(1))
    nearest = torch.full((len(x), scores.shape[1]), torch.inf, device=x.device)
    member = torch.zeros(len(x), scores.shape[1], dtype=torch.int64, device=x.device)
    for label in predicted.unique().tolist():
        if label == target.reject_class:
            continue
        members = (predicted == label).nonzero().squeeze(1)
        nearest[:, label], index = distance[:, members].min(dim=1)
        member[:, label] = members[index]
    nearest.scatter_(1, y[:, None], torch.inf)
    order = nearest.argsort(dim=1, stable=True)[:, :starts]
    chosen = pool[member.gather(1, order)]
    missing = torch.isinf(nearest.gather(1, order)).view(*order.shape, *[1] * (x.dim() - 1))
    return torch.where(missing, x.unsqueeze(1), chosen)


class _Walk(Protocol):
    """How new places on the boundary are proposed."""

    tolerance: Tensor  # radius below which a bisection ends, per point (N,)

    def propose(self, rows: Tensor) -> Tensor:
        """A candidate (n, …) for each of the rows."""

    def learn(self, rows: Tensor, candidate: Tensor, crossed: Tensor) -> None:
        """Take notice of which candidates were of another class."""


class _State:
    """Per point: the anchor, the radius at which it is known to be of another class, and the current task."""

    def __init__(self, x: Tensor, threat: ThreatModel, starts: Tensor, rng: PointRNG) -> None:
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

    def next_candidates(self, rows: Tensor, walk: _Walk, step: Tensor) -> Tensor:
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

    def learn(self, rows: Tensor, candidate: Tensor, crossed: Tensor, walk: _Walk) -> None:
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
        return self.tried[rows] < self.starts.shape[1]

    def _beaten(self, rows: Tensor, walk: _Walk) -> Tensor:
        """The radius that a new start must do with, (n,)."""
        held = self.radius[rows]
        return torch.where(torch.isfinite(held), held - walk.tolerance[rows], held)

    def _start(self, rows: Tensor, step: Tensor) -> Tensor:
        """The next starting point: from the pool, then uniform noise."""
        low, high = self.threat.bounds
        noise = low + (high - low) * self.rng.select(rows).uniform(self.x.shape[1:], step=step).to(self.x)
        if self.starts.shape[1] == 0:
            return noise
        from_pool = self.starts[rows, self.tried[rows].clamp_max(self.starts.shape[1] - 1)]
        return torch.where(self.column(self._starts_left(rows)), from_pool, noise)


class _SignFlips:
    """RayS: anchors are corners of the box; blocks of coordinates go to the opposite side, coarse blocks first.

    Half of the proposals must cross at a radius below the one held, so that one query decides
    (RayS). The other half may cross at the radius held and then replace the anchor without bringing
    it nearer: greedy flips alone get stuck (digits, one-hot output, 1000 queries: 9 % of the points
    left, 1 % with the drift; RayS has none). After the finest blocks the sequence starts again with
    the blocks displaced.
    """

    def __init__(self, state: _State) -> None:
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


class _BoundaryWalk:
    """HopSkipJump: the normal of the boundary from random probes, a step along it, back to the boundary."""

    def __init__(self, state: _State) -> None:
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
