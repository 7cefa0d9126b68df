"""Square attack: random search with square-shaped changes, from class scores alone.

M. Andriushchenko, F. Croce, N. Flammarion, M. Hein, "Square Attack: a query-efficient
black-box adversarial attack via random search", ECCV 2020 (Algorithms 1, 2 and 3).

Notation as there: p is the share of the pixels that one proposal changes, s the side of
its square, η the bump pattern of the L2 version. A plain vector (N, D) is treated as an
image of height 1, its squares are segments of s = p·D coordinates.

Points of one batch may be at different steps, so every quantity that the paper computes
once per iteration (p, s, place, signs) is a tensor over points here. A proposal is written
into the iterate and taken back where it is rejected, so that a query touches the pixels of
its windows and no others.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskaudit.attacks.ball import Ball, norm_of
from maskaudit.attacks.confirm import confirmation
from maskaudit.attacks.interface import Attempt, BestCandidates
from maskaudit.attacks.resident import ResidentBatch, SlotState
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel, per_point_norm

#: The paper halves p at these iterations of a run of 10,000 (section 4.1); other budgets rescale them.
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCHEDULE_LENGTH = 10_000
#: Smallest side of an L2 window: an η narrower than this has no bump.
SMALLEST_L2_WINDOW = 3
#: Steps whose random numbers are drawn at once.
BLOCK = 64
#: The L2 start tiles the image with windows of this share of its side (Algorithm 3, line 1).
L2_START_SHARE = 5


def square(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    rng: PointRNG,
    queries: int = 1000,
    p_init: float = 0.8,
    starts: Tensor | None = None,
) -> Attempt:
    """Random search on the margin; a proposal is kept when the margin does not fall.

    Proposals of equal margin are accepted, so that the search drifts on plateaus (quantised
    or rounded scores) where the paper's strict rule would test changes of one fixed point.

    Args:
        x: clean points, images (N, C, H, W) or vectors (N, D); y: labels (N,).
        queries: evaluations per point, including the one of the starting pattern.
        p_init: share of the pixels changed by the first proposals; AutoAttack's value
            (Croce & Hein 2020) stands for both norms.
        starts: points (N, …) at which the search begins, moved into ball and bounds first; without them it begins
            with the paper's pattern.

    Returns:
        The candidate with the largest breaking margin; `first_success` counts queries.
    """
    images = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)
    canvas = _Canvas.of(images, p_init, queries)
    start, propose = (_stripes, _propose_linf) if threat.norm == "Linf" else (_tiles, _propose_l2)
    draws = rng.fork("square")
    tick = 0

    def drawn(points: Tensor, number: Tensor) -> Tensor:
        """Uniforms for `BLOCK` steps at once, of which the step of the batch is now at `tick` % `BLOCK`."""
        steps = number[:, None] + (torch.arange(BLOCK, device=x.device) - tick % BLOCK)
        return draws.select(points).uniform((5 + canvas.channels,), step=steps)

    def enter(points: Tensor) -> _State:
        clean = images[points]
        if starts is None:
            first = start(canvas, threat, clean, draws.select(points))
        else:
            first = threat.project(starts[points].view_as(clean), clean)
        low = torch.full((len(points),), -torch.inf, device=x.device)
        return _State(Ball.around(clean, threat), first, low, drawn(points, torch.zeros_like(points)))

    batch = ResidentBatch(
        BestCandidates(images), limit=queries, batch_size=target.batch_size, stop_early=target.stop_early,
        confirm=confirmation(target, x, y),
        enter=enter, candidates=lambda state: (state.current, state.height),
    )  # fmt: skip
    while len(batch):
        state, points = batch.state, batch.points
        if tick and tick % BLOCK == 0:
            state.draws = drawn(points, batch.number)
        change = propose(canvas, state, batch, state.draws[:, tick % BLOCK])
        change.write(state.current)
        reached = target.margin(target.scores(state.current.view(len(points), *x.shape[1:])), y[points])
        kept = (reached >= state.height) & batch.alive
        change.undo(state.current, ~kept)
        torch.where(kept, reached, state.height, out=state.height)
        tick += 1
        batch.advance(reached > 0)
    attempt = batch.finish()
    examples = attempt.examples.view_as(x)
    return replace(attempt, examples=examples if threat.norm == "Linf" else threat.project(examples, x))


@dataclass
class _State(SlotState):
    """Per slot: the ball, the iterate, its margin, and the random numbers of the next steps."""

    ball: Ball
    current: Tensor
    height: Tensor
    draws: Tensor


@dataclass(frozen=True)
class _Change:
    """Pixels that a proposal writes, one entry per window, the last window on top.

    Attributes:
        at: flat pixel numbers, int64 (b, 1, S); a pixel may come up again with the same value.
        old, new: values before and after, (b, C, S).
    """

    at: tuple[Tensor, ...]
    old: tuple[Tensor, ...]
    new: tuple[Tensor, ...]

    def write(self, images: Tensor) -> None:
        """Put the new values into images (b, C, H, W)."""
        for at, value in zip(self.at, self.new, strict=True):
            images.flatten(2).scatter_(2, at.expand_as(value), value)

    def undo(self, images: Tensor, rejected: Tensor) -> None:
        """Put the old values back where `rejected` (b,)."""
        rejected = rejected[:, None, None]
        for at, old, new in zip(self.at, self.old, self.new, strict=True):
            value = torch.where(rejected, old, new)
            images.flatten(2).scatter_(2, at.expand_as(value), value)


@dataclass(frozen=True)
class _Canvas:
    """What depends on the image size and the budget only.

    Attributes:
        height, width, channels: of the images; height 1 for vectors.
        sides: int64 (stages,): side of the Linf square at each stage of the schedule.
        windows: int64 (stages,): side of the L2 window, odd where there is room.
        bumps: η of each stage's window in both orientations, (stages, 2, S_h, S_w), zero-padded.
        boundaries: queries after which the schedule moves on, float64 (stages − 1,).
        on_host: what the host must know without asking the device, (sides, windows, boundaries).
    """

    height: int
    width: int
    channels: int
    sides: Tensor
    windows: Tensor
    bumps: Tensor
    boundaries: Tensor
    on_host: tuple[list[int], list[int], list[float]]

    @classmethod
    def of(cls, images: Tensor, p_init: float, queries: int) -> _Canvas:
        channels, height, width = images.shape[1:]
        shares = [p_init / 2**k for k in range(len(SCHEDULE) + 1)]
        if height == 1:
            sides = [min(max(round(p * width), 1), width) for p in shares]
            windows = [min(max(s, SMALLEST_L2_WINDOW), width) for s in sides]
        else:
            room = min(height, width)
            sides = [min(max(round(math.sqrt(p * height * width)), 1), room) for p in shares]
            windows = [min(max(s, SMALLEST_L2_WINDOW) | 1, room) for s in sides]
        widest = max(windows)
        bumps = torch.zeros(len(windows), 2, 1 if height == 1 else widest, widest)
        for stage, window in enumerate(windows):
            eta = eta_pattern(1 if height == 1 else window, window)
            bumps[stage, 0, : eta.shape[0], : eta.shape[1]] = eta
            bumps[stage, 1, : eta.shape[0], : eta.shape[1]] = -eta if height == 1 else eta.T
        boundaries = torch.tensor(SCHEDULE, dtype=torch.float64) * queries / SCHEDULE_LENGTH
        device = images.device
        return cls(
            height,
            width,
            channels,
            torch.tensor(sides, device=device),
            torch.tensor(windows, device=device),
            bumps.to(images),
            boundaries.to(device),
            (sides, windows, boundaries.tolist()),
        )

    def stage(self, step: Tensor) -> Tensor:
        """Place in the schedule (N,) for the number of queries already spent (N,)."""
        return torch.bucketize((step - 1).clamp_min(0).double(), self.boundaries)

    def largest(self, sides: list[int], step: int) -> int:
        """The largest of `sides` (stages) in use from a step on; the schedule never grows."""
        return sides[bisect.bisect_left(self.on_host[2], float(max(step - 1, 0)))]

    def place(self, side: Tensor, u: Tensor, v: Tensor, most: int) -> _Window:
        """The window of `side` (b,) ≤ `most` whose corner two uniforms (b,) choose."""
        across, down = side.clamp_max(self.width), side.clamp_max(self.height)
        top = (u * (self.height - down + 1)).long().clamp_max(self.height - 1)
        left = (v * (self.width - across + 1)).long().clamp_max(self.width - 1)
        i = torch.arange(min(most, self.height), device=side.device)
        j = torch.arange(min(most, self.width), device=side.device)
        rows, columns = torch.minimum(i, down[:, None] - 1), torch.minimum(j, across[:, None] - 1)
        return _Window(self.width, top, left, down, across, rows, columns)


@dataclass(frozen=True)
class _Window:
    """Windows of several sizes as tensors of one: a smaller one repeats its last row and column.

    Attributes:
        width: of the image.
        top, left, down, across: corner and sides, (b,).
        rows, columns: offsets from the corner, (b, h) and (b, w).
    """

    width: int
    top: Tensor
    left: Tensor
    down: Tensor
    across: Tensor
    rows: Tensor
    columns: Tensor

    def pixels(self) -> Tensor:
        """Flat pixel numbers, int64 (b, 1, h·w)."""
        first = self.top * self.width + self.left
        inner = self.rows[:, :, None] * self.width + self.columns[:, None, :]
        return (first[:, None, None] + inner).flatten(1)[:, None]

    def once(self) -> Tensor:
        """True for each pixel's first mention, bool (b, 1, h·w)."""
        i = torch.arange(self.rows.shape[1], device=self.rows.device) < self.down[:, None]
        j = torch.arange(self.columns.shape[1], device=self.rows.device) < self.across[:, None]
        return (i[:, :, None] & j[:, None, :]).flatten(1)[:, None]

    def first_mention(self) -> Tensor:
        """Place in `pixels` of each pixel's first mention, int64 (b, 1, h·w)."""
        return (self.rows[:, :, None] * self.columns.shape[1] + self.columns[:, None, :]).flatten(1)[:, None]

    def inside(self, other: _Window) -> Tensor:
        """True for pixels of this window that lie in the other one, bool (b, 1, h·w)."""
        row, column = self.top[:, None] + self.rows, self.left[:, None] + self.columns
        i = (row >= other.top[:, None]) & (row < (other.top + other.down)[:, None])
        j = (column >= other.left[:, None]) & (column < (other.left + other.across)[:, None])
        return (i[:, :, None] & j[:, None, :]).flatten(1)[:, None]


def eta_pattern(height: int, width: int) -> Tensor:
    """The paper's η: two pyramids of opposite sign side by side, ‖η‖₂ = 1, (height, width).

    The split runs along the longer axis available: the first for squares, the second for segments.
    """
    if height == 1:
        first = width // 2
        eta = torch.cat([_pyramid(1, first), -_pyramid(1, width - first)], dim=1)
    else:
        first = height // 2
        eta = torch.cat([_pyramid(first, width), -_pyramid(height - first, width)], dim=0)
    return eta / eta.norm().clamp_min(torch.finfo(eta.dtype).tiny)


def _pyramid(height: int, width: int) -> Tensor:
    """Σ_{k=d}^{n} 1/(k+1)² at Chebyshev distance d from the centre (section 4.3), (height, width)."""
    if height == 0 or width == 0:
        return torch.zeros(height, width)
    n = max(height // 2, width // 2)
    terms = 1.0 / torch.arange(1, n + 2, dtype=torch.float32) ** 2
    tail = terms.flip(0).cumsum(0).flip(0)
    i = (torch.arange(height) - height // 2).abs()
    j = (torch.arange(width) - width // 2).abs()
    return tail[torch.maximum(i[:, None], j[None, :]).clamp_max(n)]


def _stripes(canvas: _Canvas, threat: ThreatModel, clean: Tensor, rng: PointRNG) -> Tensor:
    """Linf start: vertical stripes of ±ε, one sign per channel and column (Algorithm 2, line 1)."""
    signs = rng.fork("start").signs((canvas.channels, 1, canvas.width)).to(clean)
    return threat.project(clean + threat.eps * signs, clean)


def _propose_linf(canvas: _Canvas, state: _State, batch: ResidentBatch[_State], u: Tensor) -> _Change:
    """One square set to +ε or −ε per channel (Algorithm 2), never a proposal without change.

    The paper redraws while the projected proposal equals the iterate; turning all signs round
    has the same effect in one go, since an inner value that sits at +ε can still go to −ε.
    """
    side = canvas.sides[canvas.stage(batch.number)]
    window = canvas.place(side, u[:, 0], u[:, 1], canvas.largest(canvas.on_host[0], batch.youngest))
    at = window.pixels()
    ball = state.ball
    assert ball.low is not None
    assert ball.high is not None
    old, low, high = _read(state.current, at), _read(ball.low, at), _read(ball.high, at)
    up = (u[:, 2 : 2 + canvas.channels] >= 0.5)[:, :, None]
    new = torch.where(up, high, low)
    unchanged = (new == old).flatten(1).all(dim=1)
    new = torch.where((up ^ unchanged[:, None, None]), high, low)
    return _Change((at,), (old,), (_but_first(batch, old, new),))


def _read(images: Tensor, at: Tensor) -> Tensor:
    """Values (b, C, S) of images (b, C, H, W) at flat pixels (b, 1, S)."""
    return images.flatten(2).gather(2, at.expand(-1, images.shape[1], -1))


def _but_first(batch: ResidentBatch[_State], old: Tensor, new: Tensor) -> Tensor:
    """`new`, but the first query of a point is its starting pattern."""
    return new if batch.youngest else torch.where((batch.number == 0)[:, None, None], old, new)


def _tiles(canvas: _Canvas, threat: ThreatModel, clean: Tensor, rng: PointRNG) -> Tensor:
    """L2 start: the image tiled with η of random sign, scaled to the sphere (Algorithm 3, line 1)."""
    across = max(canvas.width // L2_START_SHARE, min(SMALLEST_L2_WINDOW, canvas.width))
    down = 1 if canvas.height == 1 else max(canvas.height // L2_START_SHARE, min(SMALLEST_L2_WINDOW, canvas.height))
    tile = eta_pattern(down, across).to(clean)
    rows, columns = -(-canvas.height // down), -(-canvas.width // across)
    signs = rng.fork("start").signs((canvas.channels, rows, columns)).to(clean)
    pattern = tile.repeat(rows, columns)[: canvas.height, : canvas.width]
    signs = signs.repeat_interleave(down, dim=2).repeat_interleave(across, dim=3)
    return _onto_sphere(threat, signs[:, :, : canvas.height, : canvas.width] * pattern, clean)


def _propose_l2(canvas: _Canvas, state: _State, batch: ResidentBatch[_State], u: Tensor) -> _Change:
    """Move perturbation mass from one window into η in another (Algorithm 3).

    Window W₂ is wiped; what it held, and what was left of the budget, goes into window W₁
    along η + δ_W₁/‖δ_W₁‖. An overdrawn budget (rounding) is taken back in the same way.
    """
    threat, clean = state.ball.threat, state.ball.clean
    stage = canvas.stage(batch.number)
    side, most = canvas.windows[stage], canvas.largest(canvas.on_host[1], batch.youngest)
    into, away = canvas.place(side, u[:, 0], u[:, 1], most), canvas.place(side, u[:, 2], u[:, 3], most)
    into_at, away_at = into.pixels(), away.pixels()
    into_old, away_old = _read(state.current, into_at), _read(state.current, away_at)
    into_clean, away_clean = _read(clean, into_at), _read(clean, away_at)
    once = into.once()
    held = (into_old - into_clean) * once
    wiped = (away_old - away_clean) * (away.once() & ~away.inside(into))

    spent = norm_of(torch.sub(state.current, clean, out=state.ball.scratch)).square()
    touched = held.square().sum(2) + wiped.square().sum(2)
    per_channel = (touched + ((threat.eps**2 - spent) / canvas.channels)[:, None]).clamp_min(0).sqrt()

    orientation = (u[:, 4] < 0.5).long()
    cells = (stage[:, None, None], orientation[:, None, None], into.rows[:, :, None], into.columns[:, None, :])
    signs = torch.where(u[:, 5:] < 0.5, -1.0, 1.0).to(clean)[:, :, None]
    bump = canvas.bumps[cells].flatten(1)[:, None] * signs
    direction = (bump + held / _channel_norm(held)) * once
    fresh = direction / _channel_norm(direction) * per_channel[:, :, None]
    # the repeated cells of a smaller window must carry the value of the cell that they repeat
    fresh = fresh.gather(2, into.first_mention().expand_as(fresh))
    new = threat.clamp(into_clean + fresh)
    return _Change(
        (away_at, into_at),
        (away_old, into_old),
        (_but_first(batch, away_old, away_clean), _but_first(batch, into_old, new)),
    )


def _onto_sphere(threat: ThreatModel, direction: Tensor, clean: Tensor) -> Tensor:
    scale = threat.eps / per_point_norm(direction).clamp_min(torch.finfo(direction.dtype).tiny)
    return threat.project(clean + direction * scale.view(-1, 1, 1, 1), clean)


def _channel_norm(delta: Tensor) -> Tensor:
    """‖·‖₂ of each channel of (b, C, S), kept broadcastable, never zero."""
    return delta.norm(dim=2, keepdim=True).clamp_min(1e-12)
