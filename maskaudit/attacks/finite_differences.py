"""Gradient ascent on a gradient that is measured instead of asked for.

The margin is differenced over steps of several sizes, from the size of the ball downwards.
One size is not enough: small steps see nothing of a quantised input (every difference is
zero), and steps shorter than the period of a ripple follow the ripple. Which size helps is
found out per point, by whether the step it leads to raises the margin.

P.-Y. Chen, H. Zhang, Y. Sharma, J. Yi, C.-J. Hsieh, "ZOO: zeroth order optimization based
black-box attacks", 2017 (coordinate-wise central differences); A. Ilyas, L. Engstrom,
A. Madry, "Prior convictions: black-box adversarial attacks with bandits and priors", 2019
(in large images neighbouring pixels are differenced together).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.attacks.interface import ActiveSet, Attempt, BestCandidates
from maskaudit.attacks.noise import surface_noise
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

#: Sizes of the differences: each coordinate moves by this share of ε (Linf), each block by this share of ε/2 (L2).
SCALES = (1.0, 2.0, 0.25, 0.0625)
#: Lengths tried along a measured gradient, in units of ε; the first crosses the whole ball.
STEP_LENGTHS = (2.0, 0.5, 0.125)
#: Weight of the former direction (Dong et al. 2018 use 1 with exact gradients; ours carry noise).
MOMENTUM = 0.75
#: Elements of the largest tensor of difference points made at once: 16 MB in float32.
CHUNK_ELEMENTS = 2**22


def finite_differences(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    rng: PointRNG,
    queries: int = 3000,
    scales: tuple[float, ...] = SCALES,
    coordinate_limit: int = 128,
) -> Attempt:
    """Ascent along central differences of the margin, with momentum and projection.

    Up to `coordinate_limit` coordinates are differenced one by one. Larger inputs are cut into
    at most that many blocks, whose grid shifts at random from step to step; the coordinates of a
    block move together, alternately all in one direction and with random signs (orthogonal
    antithetic directions, so that high frequencies are seen as well).

    When no size of difference leads upwards any more, the point restarts at a random place of
    the ball's surface.

    Args:
        x: clean points, images (N, C, H, W) or vectors (N, D); y: labels (N,).
        queries: evaluations per point, counted before they are made (the last step may overrun).
        scales: sizes of the differences in units of ε, tried in this order; a point stays with one
            while it leads upwards.
        coordinate_limit: number of central differences per gradient at most.

    Returns:
        The candidate with the largest breaking margin; `first_success` counts queries at the end
        of the step that broke the point.
    """
    blocks = _Blocks.of(x, coordinate_limit)
    streams = rng.fork("finite differences")
    n, device = len(x), x.device
    iterate = x.clone()
    direction = torch.zeros_like(x)
    height = torch.full((n,), -torch.inf, device=device)  # margin of the iterate, −inf when not measured
    scale = torch.zeros(n, dtype=torch.int64, device=device)  # which size of difference is in use
    turn = torch.zeros(n, dtype=torch.int64, device=device)  # gradients measured so far
    sizes = torch.tensor(scales, dtype=x.dtype, device=device) * blocks.unit(threat)
    best = BestCandidates(x)
    per_chunk = max(1, min(target.batch_size, CHUNK_ELEMENTS // (2 * blocks.count * x[0].numel())))
    active = ActiveSet(n, limit=queries, batch_size=per_chunk, stop_early=target.stop_early, device=device)
    while (rows := active.next_rows()) is not None:
        state = _Points(target, threat, best, rows, x[rows], y[rows], streams.select(rows))
        gradient = blocks.gradient(state, iterate[rows], sizes[scale[rows]], turn[rows])
        length = threat.dual_norm(gradient).view(-1, *[1] * (x.dim() - 1))
        former = direction[rows]
        ahead = torch.where(length > 0, MOMENTUM * former + gradient / length.clamp_min(1e-30), 0.0)

        moved, reached = state.climb(iterate[rows], ahead)
        informed = length.flatten() > 0
        higher = reached > height[rows]
        iterate[rows[higher]], height[rows[higher]] = moved[higher], reached[higher]
        useful = higher & informed
        direction[rows] = torch.where(useful.view_as(length), ahead, 0.0)
        failed = rows[~useful]
        scale[failed] += 1
        turn[rows] += 1
        stuck = failed[scale[failed] >= len(scales)]
        if len(stuck):
            iterate[stuck] = surface_noise(x[stuck], threat=threat, rng=streams.select(stuck), step=-turn[stuck])
            height[stuck] = -torch.inf
            scale[stuck] = 0
        active.advance(rows, state.broken, cost=2 * blocks.count + len(STEP_LENGTHS))
    return Attempt(best.examples, active.first_success, active.step)


class _Points:
    """The points of one step, with the bookkeeping of everything that is evaluated for them.

    Attributes:
        broken: which of them some admissible evaluation has broken, bool (n,).
    """

    def __init__(
        self,
        target: Target,
        threat: ThreatModel,
        best: BestCandidates,
        rows: Tensor,
        clean: Tensor,
        y: Tensor,
        rng: PointRNG,
    ) -> None:
        self.target, self.threat, self.best = target, threat, best
        self.rows, self.clean, self.y, self.rng = rows, clean, y, rng
        self.broken = torch.zeros(len(rows), dtype=torch.bool, device=clean.device)

    def margins(self, candidates: Tensor, *, inside: bool) -> Tensor:
        """Margins (n, m) of m candidates per point (n, m, …); the best admissible one is offered.

        `inside` says that all of them are admissible; otherwise each is checked.
        """
        n, m = candidates.shape[:2]
        flat = candidates.flatten(0, 1)
        margin = self.target.margin(self.target.scores(flat), self.y.repeat_interleave(m)).view(n, m)
        eligible = margin
        if not inside:
            clean = self.clean.repeat_interleave(m, dim=0)
            eligible = margin.masked_fill(~self.threat.admissible(flat, clean).view(n, m), -torch.inf)
        value, index = eligible.max(dim=1)
        self.best.offer(self.rows, candidates[torch.arange(n, device=flat.device), index], value)
        self.broken |= value > 0
        return margin

    def climb(self, start: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
        """The best of the projected steps of all `STEP_LENGTHS` along `ahead`, and its margin (n,)."""
        unit = self.threat.step_direction(ahead)
        lengths = [length * self.threat.eps for length in STEP_LENGTHS]
        tried = torch.stack([self.threat.project(start + step * unit, self.clean) for step in lengths], dim=1)
        reached, index = self.margins(tried, inside=True).max(dim=1)
        return tried[torch.arange(len(start), device=start.device), index], reached


@dataclass(frozen=True)
class _Blocks:
    """Coordinates that are differenced together.

    Attributes:
        shape: of one image (C, H, W); vectors are (1, 1, D).
        sides: height and width of a block.
        count: blocks per image.
    """

    shape: tuple[int, int, int]
    sides: tuple[int, int]
    count: int

    @classmethod
    def of(cls, x: Tensor, limit: int) -> _Blocks:
        """The finest grid with at most `limit` blocks (one per channel at least)."""
        channels, height, width = x.shape[1:] if x.dim() == 4 else (1, 1, x.shape[1])
        side = 1
        while True:
            down = min(side, height)
            count = channels * -(-height // down) * -(-width // side)
            if count <= max(limit, channels):
                return cls((channels, height, width), (down, side), count)
            side += 1

    def unit(self, threat: ThreatModel) -> float:
        """Length by which each coordinate of a block moves at scale 1."""
        if threat.norm == "Linf":
            return threat.eps
        channels, height, width = self.shape
        return threat.eps / (channels * height * width / self.count) ** 0.5 / 2

    def gradient(self, points: _Points, at: Tensor, size: Tensor, turn: Tensor) -> Tensor:
        """Σ_k slope_k·u_k over the blocks' unit directions u_k, shape of `at` (n, …).

        The end points are clipped to the bounds, so a difference is one-sided where the iterate
        sits on a bound; slopes divide by the distance that is left.
        """
        low, high = points.threat.bounds
        n, dims = len(at), at[0].numel()
        offset = (self.directions(points.rng, turn).to(at) * size.view(n, 1, 1)).view(n, self.count, *at.shape[1:])
        centre = at.unsqueeze(1)
        ends = torch.cat([(centre + offset).clamp(low, high), (centre - offset).clamp(low, high)], dim=1)
        margin = points.margins(ends, inside=False)
        chord = (ends[:, : self.count] - ends[:, self.count :]).view(n, self.count, dims)
        squared = chord.square().sum(dim=2).clamp_min(torch.finfo(at.dtype).tiny)
        slope = (margin[:, : self.count] - margin[:, self.count :]) / squared
        return torch.nan_to_num((slope.unsqueeze(1) @ chord).view_as(at), nan=0.0, posinf=0.0, neginf=0.0)

    def directions(self, rng: PointRNG, turn: Tensor) -> Tensor:
        """Disjoint blocks with signs, (n, count, D); plain unit vectors when blocks are single coordinates."""
        channels, height, width = self.shape
        dims = channels * height * width
        n = len(turn)
        if self.count == dims:
            return torch.eye(dims, device=turn.device).expand(n, -1, -1)
        down, across = self.sides
        rows, columns = -(-height // down), -(-width // across)
        shift = rng.uniform((2,), step=2 * turn).to(turn.device)
        i = (torch.arange(height, device=turn.device) + (shift[:, :1] * height).long()) % height // down
        j = (torch.arange(width, device=turn.device) + (shift[:, 1:] * width).long()) % width // across
        channel = torch.arange(channels, device=turn.device).view(1, -1, 1, 1)
        block = (channel * rows + i[:, None, :, None]) * columns + j[:, None, None, :]
        signs = rng.signs((dims,), step=2 * turn + 1)
        signs = torch.where((turn % 2 == 0)[:, None], torch.ones_like(signs), signs)
        number = torch.arange(self.count, device=turn.device).view(1, -1, 1)
        return (block.view(n, 1, dims) == number) * signs.unsqueeze(1)
