"""Counter-based random numbers, one stream per point.

A draw depends only on (seed, stream name, point, step, position): never on the
batch a point travels in, on the order of points, or on the number of workers.
The mixing function is the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood
2014, "Fast splittable pseudorandom number generators"), applied to a counter as
in Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


@dataclass(frozen=True)
class PointRNG:
    """Random numbers for a set of points.

    Attributes:
        key: 64-bit key derived from seed and stream name (see `create`).
        points: int64 identifiers of the points, shape (N,); they travel with the points.
    """

    key: int
    points: Tensor

    @classmethod
    def create(cls, seed: int, stream: str, points: Tensor) -> PointRNG:
        """A generator for `points` (N,) int64 under a seed and the name of what draws."""
        return cls(_hashed(seed, stream), points)

    def select(self, rows: Tensor | slice) -> PointRNG:
        """The generator restricted to some rows (index, mask or slice), each keeping its own stream."""
        return replace(self, points=self.points[rows])

    def fork(self, stream: str) -> PointRNG:
        """An independent stream for the same points."""
        return self.create(self.key, stream, self.points)

    def uniform(self, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Uniform on [0, 1) with 24 random bits, float32, shape (N, *shape).

        `step` is one int, (N,) int64, or (N, S) int64 for several steps at once, shape (N, S, *shape).
        """
        bits = _shift_right(self._bits(math.prod(shape), step), 40)
        return (bits.to(torch.float32) * 2.0**-24).reshape(*bits.shape[:-1], *shape)

    def coins(self, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """True or False with equal chance, shape (N, *shape)."""
        count = math.prod(shape)
        words = self._bits(-(-count // 64), step).view(torch.uint8)
        bits = (words.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=words.device)) & 1
        return bits.flatten(-2)[..., :count].bool().reshape(*bits.shape[:-2], *shape)

    def signs(self, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """−1 or +1 with equal chance, float32, shape (N, *shape)."""
        return self.coins(shape, step=step).to(torch.float32).mul_(2).sub_(1)

    def normal(self, shape: Sequence[int], *, step: int | Tensor = 0) -> Tensor:
        """Standard normal by inversion, float32, shape (N, *shape), or (N, S, *shape) for `step` (N, S)."""
        bits = _shift_right(self._bits(math.prod(shape), step), 11)
        p = (bits.to(torch.float64) + 0.5) * 2.0**-53
        drawn: Tensor = torch.special.ndtri(p)
        return drawn.to(torch.float32).reshape(*bits.shape[:-1], *shape)

    def integers(self, high: int | Tensor, shape: Sequence[int] = (), *, step: int | Tensor = 0) -> Tensor:
        """Integers in [0, high), int64, shape (N, *shape), or (N, S, *shape) for `step` (N, S).

        `high` is one int or a tensor that broadcasts.
        """
        bits = _shift_right(self._bits(math.prod(shape), step), 11)
        fraction = (bits.to(torch.float64) * 2.0**-53).reshape(*bits.shape[:-1], *shape)
        drawn = (fraction * high).long()
        return torch.minimum(drawn, high.long() - 1) if isinstance(high, Tensor) else drawn.clamp_max_(high - 1)

    def _bits(self, count: int, step: int | Tensor) -> Tensor:
        """int64 with 64 random bits, shape (N, count), or (N, S, count) for `step` (N, S)."""
        points = self.points.to(torch.int64)
        state = _mix(points * _GOLDEN + self.key)
        if isinstance(step, Tensor):
            state = _mix((state[:, None] if step.dim() == 2 else state) + step.to(torch.int64) * _GOLDEN)
        else:
            state = _mix(state + _wrapped(step * _GOLDEN))
        position = torch.arange(1, count + 1, dtype=torch.int64, device=points.device) * _GOLDEN
        return _mix(state.unsqueeze(-1) + position)


def stream_seed(seed: int, stream: str) -> int:
    """A seed in [0, 2⁶³) for the global generators, under the audit's seed and the name of what will draw."""
    return _hashed(seed, stream) % 2**63


def _hashed(seed: int, stream: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _wrapped(value: int) -> int:
    """An int as int64 holds it after overflow."""
    return (value + 2**63) % 2**64 - 2**63


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift of int64."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)).mul_(_MIX_1)
    value.bitwise_xor_(_shift_right(value, 27)).mul_(_MIX_2)
    return value.bitwise_xor_(_shift_right(value, 31))
