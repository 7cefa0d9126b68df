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

from maskaudit.attacks.ball import as_images, finite
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.noise import surface_noise
from maskaudit.attacks.resident import ResidentBatch, SlotState, keep
from maskaudit.rng import PointRNG
from maskaudit.sums import column, row_norm
from maskaudit.target import Target, accelerator
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
    target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: PointRNG, queries: int = 3000,
    scales: tuple[float, ...] = SCALES, coordinate_limit: int = 128,
) -> Attempt:  # fmt: skip
    """Ascent along central differences of the margin, with momentum and projection.

    Of at most 128 coordinates each is differenced by itself. Larger inputs are cut into
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
    sizes = torch.tensor(scales, dtype=x.dtype, device=x.device) * blocks.unit(threat)
    per_step = 2 * blocks.count + len(STEP_LENGTHS)
    per_chunk = max(1, min(target.batch_size, CHUNK_ELEMENTS // (2 * blocks.count * x[0].numel())))

    def enter(points: Tensor) -> _State:
        unmeasured = torch.full((len(points),), -torch.inf, device=x.device)
        return _State(x[points], x[points], torch.zeros_like(x[points]), unmeasured, torch.zeros_like(points))

    batch = ResidentBatch.on(target, x, y, limit=-(-queries // per_step), batch_size=per_chunk, enter=enter)
    while len(batch):
        state, points = batch.state, batch.points
        draws = streams.select(points)
        step = _Step(target, threat, batch, y[points])
        gradient = blocks.gradient(step, state.iterate, sizes[state.scale], draws, batch.number)
        length = column(threat.dual_norm(gradient), x)
        ahead = torch.where(length > 0, MOMENTUM * state.direction + gradient / length.clamp_min(1e-30), 0.0)

        moved, reached = step.climb(state.iterate, ahead)
        higher = reached > state.height
        keep(higher, moved, state.iterate)
        keep(higher, reached, state.height)
        useful = higher & (length.flatten() > 0)
        state.direction = torch.where(useful.view_as(length), ahead, 0.0)
        state.scale += ~useful
        stuck = state.scale >= len(scales)
        if accelerator.perhaps(stuck):
            keep(stuck, surface_noise(state.clean, threat=threat, rng=draws, step=-1 - batch.number), state.iterate)
            state.height.masked_fill_(stuck, -torch.inf)
            state.scale.masked_fill_(stuck, 0)
        batch.advance(step.broken)
    attempt = batch.finish()
    first = torch.where(attempt.first_success > 0, attempt.first_success * per_step, attempt.first_success)
    return Attempt(attempt.examples, first, attempt.queries * per_step)


@dataclass
class _State(SlotState):
    """Per slot.

    Attributes:
        clean, iterate: the clean point and the place of the search, (b, …).
        direction: former direction, (b, …).
        height: margin of the iterate, −∞ when not measured, (b,).
        scale: which size of difference is in use, int64 (b,).
    """

    clean: Tensor
    iterate: Tensor
    direction: Tensor
    height: Tensor
    scale: Tensor


class _Step:
    """One step of the batch, with the bookkeeping of everything that is evaluated in it.

    Attributes:
        broken: which points some admissible evaluation has broken, bool (b,).
    """

    def __init__(self, target: Target, threat: ThreatModel, batch: ResidentBatch[_State], y: Tensor) -> None:
        self.target, self.threat, self.batch, self.y = target, threat, batch, y
        self.clean = batch.state.clean
        self.rows = torch.arange(len(y), device=y.device)
        self.broken = torch.zeros(len(y), dtype=torch.bool, device=y.device)

    def margins(self, candidates: Tensor, inside: Tensor | None = None) -> Tensor:
        """Margins (b, m) of m candidates per point (b, m, …); the best admissible one is offered.

        `inside`, bool (b, m), says which are admissible; all of them if it is not given.
        """
        m = candidates.shape[1]
        margin = self.target.margin(self.target.scores(candidates.flatten(0, 1)), self.y.repeat_interleave(m)).view(
            -1, m
        )
        eligible = margin if inside is None else torch.where(inside, margin, -torch.inf)
        value, index = eligible.max(dim=1)
        self.batch.offer(candidates[self.rows, index], value)
        self.broken |= value > 0
        return margin

    def climb(self, start: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
        """The best of the projected steps of all `STEP_LENGTHS` along `ahead`, and its margin (b,)."""
        unit = self.threat.step_direction(ahead)
        lengths = [length * self.threat.eps for length in STEP_LENGTHS]
        tried = torch.stack([self.threat.project(start + step * unit, self.clean) for step in lengths], dim=1)
        reached, index = self.margins(tried).max(dim=1)
        return tried[self.rows, index], reached


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
        channels, height, width = as_images(x[:1]).shape[1:]
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

    def gradient(self, step: _Step, at: Tensor, size: Tensor, rng: PointRNG, turn: Tensor) -> Tensor:
        """Σ_k slope_k·u_k over the blocks' unit directions u_k, shape of `at` (n, …).

        The end points are clipped to the bounds, so a difference is one-sided where the iterate
        sits on a bound; slopes divide by the distance that is left. Blocks are disjoint: what is not asked of the
        model is computed for all of them in one image.
        """
        low, high = step.threat.bounds
        n, centre = len(at), at.flatten(1)
        block, signs = self.layout(rng, turn)
        offset = signs.to(at) * size.view(n, 1)
        moved = [(centre + offset).clamp(low, high), (centre - offset).clamp(low, high)]
        chosen = block.unsqueeze(1) == torch.arange(self.count, device=at.device).view(1, -1, 1)
        ends = at.new_empty(n, 2, self.count, centre.shape[1])
        for side, end in enumerate(moved):
            torch.where(chosen, end.unsqueeze(1), centre.unsqueeze(1), out=ends[:, side])
        if step.threat.features is None:
            inside = torch.cat([self.inside(step, centre, end, block) for end in moved], dim=1)
        else:
            clean = step.clean.repeat_interleave(2 * self.count, dim=0)
            settled = step.threat.features.snapped(ends.flatten(0, 2))
            inside = (step.threat.distance(settled, clean) <= step.threat.reach).view(n, -1)
        margin = step.margins(ends.view(n, 2 * self.count, *at.shape[1:]), inside)
        chord = moved[0] - moved[1]
        squared = self.sums(chord.square(), block).clamp_min(torch.finfo(at.dtype).tiny)
        slope = (margin[:, : self.count] - margin[:, self.count :]) / squared
        return finite((slope.gather(1, block) * chord).view_as(at))

    def layout(self, rng: PointRNG, turn: Tensor) -> tuple[Tensor, Tensor]:
        """The block of every coordinate, int64, and its sign, both (n, D); single coordinates all have the sign 1."""
        channels, height, width = self.shape
        dims = channels * height * width
        n = len(turn)
        if self.count == dims:
            return torch.arange(dims, device=turn.device).expand(n, -1), torch.ones(n, dims, device=turn.device)
        down, across = self.sides
        rows, columns = -(-height // down), -(-width // across)
        shift = rng.uniform((2,), step=2 * turn).to(turn.device)
        i = (torch.arange(height, device=turn.device) + (shift[:, :1] * height).long()) % height // down
        j = (torch.arange(width, device=turn.device) + (shift[:, 1:] * width).long()) % width // across
        channel = torch.arange(channels, device=turn.device).view(1, -1, 1, 1)
        block = (channel * rows + i[:, None, :, None]) * columns + j[:, None, None, :]
        signs = rng.signs((dims,), step=2 * turn + 1)
        signs = torch.where((turn % 2 == 0)[:, None], torch.ones_like(signs), signs)
        return block.reshape(n, dims), signs

    def inside(self, step: _Step, centre: Tensor, end: Tensor, block: Tensor) -> Tensor:
        """Whether the iterate `centre` stays in the ball when a block moves to `end`, both (n, D); bool (n, count)."""
        threat, clean = step.threat, step.clean.flatten(1)
        if threat.norm == "Linf":
            return self.sums(((end - clean).abs_() > threat.reach).to(end.dtype), block) == 0
        before, after = ((place.double() - clean).square_() for place in (centre, end))
        return row_norm(before, 1)[:, None] + self.sums(after - before, block) <= threat.reach**2

    def sums(self, values: Tensor, block: Tensor) -> Tensor:
        """The sum of `values` (n, D) over every block, (n, count)."""
        return values.new_zeros(len(values), self.count).scatter_add_(1, block, values)
