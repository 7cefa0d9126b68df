"""Where Square draws: the schedule of window sizes, windows of several sizes as one tensor, and what a proposal writes.

Notation and sources as in `maskaudit.attacks.square`.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: The paper halves p at these iterations of a run of 10,000 (section 4.1); other budgets rescale them.
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCHEDULE_LENGTH = 10_000
#: Smallest side of an L2 window: an η narrower than this has no bump.
SMALLEST_L2_WINDOW = 3


@dataclass(frozen=True)
class Change:
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
class Canvas:
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
    def of(cls, images: Tensor, p_init: float, queries: int) -> Canvas:
        """The canvas for images (N, C, H, W) of an attack that begins with share `p_init` of the pixels."""
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

    def place(self, side: Tensor, u: Tensor, v: Tensor, most: int) -> Window:
        """The window of `side` (b,) ≤ `most` whose corner two uniforms (b,) choose."""
        across, down = side.clamp_max(self.width), side.clamp_max(self.height)
        top = (u * (self.height - down + 1)).long().clamp_max(self.height - 1)
        left = (v * (self.width - across + 1)).long().clamp_max(self.width - 1)
        i = torch.arange(min(most, self.height), device=side.device)
        j = torch.arange(min(most, self.width), device=side.device)
        rows, columns = torch.minimum(i, down[:, None] - 1), torch.minimum(j, across[:, None] - 1)
        return Window(self.width, top, left, down, across, rows, columns)


@dataclass(frozen=True)
class Window:
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

    def inside(self, other: Window) -> Tensor:
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
