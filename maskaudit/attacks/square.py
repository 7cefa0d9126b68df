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

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskaudit.attacks.ball import Ball, as_images
from maskaudit.attacks.interface import Attempt, BestCandidates
from maskaudit.attacks.resident import ResidentBatch, SlotState
from maskaudit.attacks.square_canvas import SMALLEST_L2_WINDOW, Canvas, Change, eta_pattern
from maskaudit.rng import PointRNG
from maskaudit.sums import exact_total, row_norm
from maskaudit.target import Target
from maskaudit.threat import ThreatModel, per_point_norm

#: Steps whose random numbers are drawn at once.
BLOCK = 64
#: The L2 start tiles the image with windows of this share of its side (Algorithm 3, line 1).
L2_START_SHARE = 5


def square(
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, queries: int = 1000,
    p_init: float = 0.8, starts: Tensor | None = None,
) -> Attempt:  # fmt: skip
    """Random search on the margin; a proposal is kept when the margin does not fall.

    Proposals of equal margin are accepted, so that the search drifts on plateaus (quantised
    or rounded scores) where the paper's strict rule would test changes of one fixed point.

    Args:
        x: clean points, images (N, C, H, W) or vectors (N, D); y: labels (N,).
        queries: evaluations per point, including the one of the starting pattern.
        p_init: share of the pixels changed by the first proposals; AutoAttack's value
            (Croce & Hein 2020) is used for both norms.
        starts: points (N, …) at which the search begins, moved into ball and bounds first; without them it begins
            with the paper's pattern.

    Returns:
        The candidate with the largest breaking margin; `first_success` counts queries.
    """
    images = as_images(x)
    canvas = Canvas.of(images, p_init, queries)
    start, propose = (_stripes, _propose_linf) if threat.norm == "Linf" else (_tiles, _propose_l2)
    if threat.norm == "L2" and threat.features is not None:
        propose = _propose_features
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

    batch = ResidentBatch.on(
        target, x, y, limit=queries, enter=enter, best=BestCandidates(images),
        candidates=lambda state: (state.current, state.height),
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


def _stripes(canvas: Canvas, threat: ThreatModel, clean: Tensor, rng: PointRNG) -> Tensor:
    """Linf start: vertical stripes of ±ε, one sign per channel and column (Algorithm 2, line 1)."""
    signs = rng.fork("start").signs((canvas.channels, 1, canvas.width)).to(clean)
    return threat.project(clean + threat.eps * signs, clean)


def _propose_linf(canvas: Canvas, state: _State, batch: ResidentBatch[_State], u: Tensor) -> Change:
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
    return Change((at,), (old,), (_but_first(batch, old, new),))


def _read(images: Tensor, at: Tensor) -> Tensor:
    """Values (b, C, S) of images (b, C, H, W) at flat pixels (b, 1, S)."""
    return images.flatten(2).gather(2, at.expand(-1, images.shape[1], -1))


def _but_first(batch: ResidentBatch[_State], old: Tensor, new: Tensor) -> Tensor:
    """`new`, but the first query of a point is its starting pattern."""
    return new if batch.youngest else torch.where((batch.number == 0)[:, None, None], old, new)


def _tiles(canvas: Canvas, threat: ThreatModel, clean: Tensor, rng: PointRNG) -> Tensor:
    """L2 start: the image tiled with η of random sign, scaled to the sphere (Algorithm 3, line 1)."""
    across = max(canvas.width // L2_START_SHARE, min(SMALLEST_L2_WINDOW, canvas.width))
    down = 1 if canvas.height == 1 else max(canvas.height // L2_START_SHARE, min(SMALLEST_L2_WINDOW, canvas.height))
    tile = eta_pattern(down, across).to(clean)
    rows, columns = -(-canvas.height // down), -(-canvas.width // across)
    signs = rng.fork("start").signs((canvas.channels, rows, columns)).to(clean)
    pattern = tile.repeat(rows, columns)[: canvas.height, : canvas.width]
    signs = signs.repeat_interleave(down, dim=2).repeat_interleave(across, dim=3)
    return _onto_sphere(threat, signs[:, :, : canvas.height, : canvas.width] * pattern, clean)


def _propose_l2(canvas: Canvas, state: _State, batch: ResidentBatch[_State], u: Tensor) -> Change:
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

    spent = row_norm(torch.sub(state.current, clean, out=state.ball.scratch)).square()
    touched = (_channel_square(held, threat.eps) + _channel_square(wiped, threat.eps)).to(clean)
    per_channel = (touched + ((threat.eps**2 - spent) / canvas.channels)[:, None]).clamp_min(0).sqrt()

    orientation = (u[:, 4] < 0.5).long()
    cells = (stage[:, None, None], orientation[:, None, None], into.rows[:, :, None], into.columns[:, None, :])
    signs = torch.where(u[:, 5:] < 0.5, -1.0, 1.0).to(clean)[:, :, None]
    bump = canvas.bumps[cells].flatten(1)[:, None] * signs
    direction = (bump + held / _channel_norm(held, threat.eps)) * once
    fresh = direction / _channel_norm(direction, 2.0) * per_channel[:, :, None]
    # the repeated cells of a smaller window must carry the value of the cell that they repeat
    fresh = fresh.gather(2, into.first_mention().expand_as(fresh))
    new = threat.clamp(into_clean + fresh)
    return Change(
        (away_at, into_at),
        (away_old, into_old),
        (_but_first(batch, away_old, away_clean), _but_first(batch, into_old, new)),
    )


def _propose_features(canvas: Canvas, state: _State, batch: ResidentBatch[_State], u: Tensor) -> Change:
    """One segment of the features (N, 1, 1, D) of an ellipsoid set to both ends of its axes, or back, by turns; what
    is outside the ball then is shortened as a whole."""
    threat, clean = state.ball.threat, state.ball.clean
    window = canvas.place(canvas.sides[canvas.stage(batch.number)], u[:, 0], u[:, 1], canvas.largest(
        canvas.on_host[0], batch.youngest
    ))  # fmt: skip
    inside = (
        torch.zeros_like(clean, dtype=torch.bool).view(len(clean), -1).scatter_(1, window.pixels().flatten(1), True)
    )
    sign = torch.where(u[:, 2] < 0.4, -1.0, torch.where(u[:, 2] < 0.8, 1.0, 0.0)).to(clean)[:, None, None, None]
    ends = clean + sign * threat.eps * threat.axes(clean)
    new = threat.project(torch.where(inside.view_as(clean), ends, state.current), clean)
    everywhere = torch.arange(clean[0].numel(), device=clean.device).expand(len(clean), 1, -1)
    old = state.current.flatten(2).clone()
    return Change((everywhere,), (old,), (_but_first(batch, old, new.flatten(2)),))


def _onto_sphere(threat: ThreatModel, direction: Tensor, clean: Tensor) -> Tensor:
    scale = threat.eps / per_point_norm(direction).clamp_min(torch.finfo(direction.dtype).tiny)
    return threat.project(clean + threat.scaled(direction * scale.view(-1, 1, 1, 1)), clean)


def _channel_square(delta: Tensor, length: float) -> Tensor:
    """‖·‖₂² of each channel of (b, C, S), float64 (b, C); `length` is about the most that ‖·‖₂ can be.

    S, and with it every pixel's place, follows from the widest window of the batch: the order must not matter.
    """
    return exact_total(delta.square(), length**2)


def _channel_norm(delta: Tensor, length: float) -> Tensor:
    """‖·‖₂ of each channel of (b, C, S), kept broadcastable, never zero; `length` as in `_channel_square`."""
    return _channel_square(delta, length).sqrt_().to(delta).clamp_min_(1e-12)[:, :, None]
