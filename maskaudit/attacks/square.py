"""Square attack: random search with square-shaped changes, from class scores alone.

M. Andriushchenko, F. Croce, N. Flammarion, M. Hein, "Square Attack: a query-efficient
black-box adversarial attack via random search", ECCV 2020 (Algorithms 1, 2 and 3).

Notation as there: p is the share of the pixels that one proposal changes, s the side of
its square, η the bump pattern of the L2 version. A plain vector (N, D) is treated as an
image of height 1, its squares are segments of s = p·D coordinates.

Points of one batch may be at different steps, so every quantity that the paper computes
once per iteration (p, s, place, signs) is a tensor over points here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.attacks.interface import ActiveSet, Attempt, BestCandidates
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel, per_point_norm

#: The paper halves p at these iterations of a run of 10,000 (section 4.1); other budgets rescale them.
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCHEDULE_LENGTH = 10_000
#: Smallest side of an L2 window: an η narrower than this has no bump.
SMALLEST_L2_WINDOW = 3
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
) -> Attempt:
    """Random search on the margin; a proposal is kept when the margin does not fall.

    Proposals of equal margin are accepted, so that the search drifts on plateaus (quantised
    or rounded scores) where the paper's strict rule would test changes of one fixed point.

    Args:
        x: clean points, images (N, C, H, W) or vectors (N, D); y: labels (N,).
        queries: evaluations per point, including the one of the starting pattern.
        p_init: share of the pixels changed by the first proposals; AutoAttack's value
            (Croce & Hein 2020) stands for both norms.

    Returns:
        The candidate with the largest breaking margin; `first_success` counts queries.
    """
    images = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)
    canvas = _Canvas.of(images, p_init, queries)
    propose = _propose_linf if threat.norm == "Linf" else _propose_l2
    start = _stripes if threat.norm == "Linf" else _tiles
    draws = rng.fork("square")
    iterate = images.clone()
    height = torch.full((len(x),), -torch.inf, device=x.device)  # margin of the iterate
    best = BestCandidates(x)
    active = ActiveSet(
        len(x), limit=queries, batch_size=target.batch_size, stop_early=target.stop_early, device=x.device
    )
    while (rows := active.next_rows()) is not None:
        step, clean, current, streams = active.step[rows], images[rows], iterate[rows], draws.select(rows)
        proposal = propose(canvas, threat, current, clean, streams, step)
        fresh = step == 0
        if bool(fresh.any()):
            proposal[fresh] = start(canvas, threat, clean[fresh], streams.select(fresh))
        candidate = proposal.reshape(len(rows), *x.shape[1:])
        reached = target.margin(target.scores(candidate), y[rows])
        kept = reached >= height[rows]
        iterate[rows[kept]], height[rows[kept]] = proposal[kept], reached[kept]
        best.offer(rows, candidate, reached)
        active.advance(rows, reached > 0)
    return Attempt(best.examples, active.first_success, active.step)


@dataclass(frozen=True)
class _Canvas:
    """What depends on the image size and the budget only.

    Attributes:
        height, width, channels: of the images; height 1 for vectors.
        sides: int64 (stages,): side of the Linf square at each stage of the schedule.
        windows: int64 (stages,): side of the L2 window, odd where there is room.
        bumps: η of each stage's window in both orientations, (stages, 2, S_h, S_w), zero-padded.
        boundaries: queries after which the schedule moves on, float64 (stages − 1,).
    """

    height: int
    width: int
    channels: int
    sides: Tensor
    windows: Tensor
    bumps: Tensor
    boundaries: Tensor

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
        )

    def stage(self, step: Tensor) -> Tensor:
        """Place in the schedule (N,) for the number of queries already spent (N,)."""
        return torch.bucketize((step - 1).clamp_min(0).double(), self.boundaries)

    def corner(self, side: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Top-left corner (N,), (N,) of a window of `side` (N,) placed by two uniforms (N,)."""
        across = side.clamp_max(self.width)
        down = side.clamp_max(self.height)
        top = (u * (self.height - down + 1)).long().clamp_max(self.height - 1)
        left = (v * (self.width - across + 1)).long().clamp_max(self.width - 1)
        return top, left

    def window(self, side: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """True inside each point's window, bool (N, 1, H, W)."""
        i = torch.arange(self.height, device=side.device)
        j = torch.arange(self.width, device=side.device)
        in_row = (i >= top[:, None]) & (i < (top + side)[:, None])
        in_column = (j >= left[:, None]) & (j < (left + side)[:, None])
        return (in_row[:, :, None] & in_column[:, None, :])[:, None]

    def bump(self, stage: Tensor, orientation: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """η of each point's stage moved to its corner, zero elsewhere, (N, 1, H, W)."""
        i = torch.arange(self.height, device=stage.device) - top[:, None]
        j = torch.arange(self.width, device=stage.device) - left[:, None]
        rows, columns = self.bumps.shape[2:]
        inside = ((i >= 0) & (i < rows))[:, :, None] & ((j >= 0) & (j < columns))[:, None, :]
        at = (
            stage[:, None, None],
            orientation[:, None, None],
            i.clamp(0, rows - 1)[:, :, None],
            j.clamp(0, columns - 1)[:, None, :],
        )
        return (self.bumps[at] * inside)[:, None]


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


def _propose_linf(
    canvas: _Canvas, threat: ThreatModel, current: Tensor, clean: Tensor, rng: PointRNG, step: Tensor
) -> Tensor:
    """One square set to +ε or −ε per channel (Algorithm 2), never a proposal without change.

    The paper redraws while the projected proposal equals the iterate; turning all signs round
    has the same effect in one go, since an inner value that sits at +ε can still go to −ε.
    """
    u = rng.uniform((2 + canvas.channels,), step=step)
    side = canvas.sides[canvas.stage(step)]
    top, left = canvas.corner(side, u[:, 0], u[:, 1])
    inside = canvas.window(side, top, left)
    signs = torch.where(u[:, 2:] < 0.5, -1.0, 1.0).to(clean)[:, :, None, None]
    proposal = threat.project(torch.where(inside, clean + threat.eps * signs, current), clean)
    unchanged = (proposal == current).flatten(1).all(dim=1)
    turned = threat.project(torch.where(inside, clean - threat.eps * signs, current), clean)
    return torch.where(unchanged[:, None, None, None], turned, proposal)


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


def _propose_l2(
    canvas: _Canvas, threat: ThreatModel, current: Tensor, clean: Tensor, rng: PointRNG, step: Tensor
) -> Tensor:
    """Move perturbation mass from one window into η in another (Algorithm 3).

    Window W₂ is wiped; what it held, and what was left of the budget, goes into window W₁
    along η + δ_W₁/‖δ_W₁‖.
    """
    u = rng.uniform((5 + canvas.channels,), step=step)
    stage = canvas.stage(step)
    window = canvas.windows[stage]
    delta = current - clean
    corner = canvas.corner(window, u[:, 0], u[:, 1])
    into = canvas.window(window, *corner)
    away = canvas.window(window, *canvas.corner(window, u[:, 2], u[:, 3]))
    held = torch.where(into, delta, 0.0)
    touched = torch.where(into | away, delta, 0.0)

    spare = (threat.eps**2 - delta.flatten(1).square().sum(1)).clamp_min(0)
    per_channel = (touched.flatten(2).square().sum(2) + spare[:, None] / canvas.channels).sqrt()

    signs = torch.where(u[:, 5:] < 0.5, -1.0, 1.0).to(clean)[:, :, None, None]
    bump = canvas.bump(stage, (u[:, 4] < 0.5).long(), *corner) * signs
    direction = bump + held / _channel_norm(held)
    fresh = direction / _channel_norm(direction) * per_channel[:, :, None, None]
    moved = torch.where(into, fresh, torch.where(away, 0.0, delta))
    return threat.project(clean + moved, clean)


def _onto_sphere(threat: ThreatModel, direction: Tensor, clean: Tensor) -> Tensor:
    scale = threat.eps / per_point_norm(direction).clamp_min(torch.finfo(direction.dtype).tiny)
    return threat.project(clean + direction * scale.view(-1, 1, 1, 1), clean)


def _channel_norm(delta: Tensor) -> Tensor:
    """‖·‖₂ of each channel of (N, C, H, W), kept broadcastable, never zero."""
    return delta.flatten(2).norm(dim=2).clamp_min(1e-12)[:, :, None, None]
