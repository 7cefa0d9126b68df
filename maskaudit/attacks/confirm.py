"""When an attack on a random model may leave a point: its candidate wins nearly all of many fresh draws.

One lucky draw proves nothing there, so a point does not leave at its first success. But most points that are broken
at all are soon broken in every draw, and going on with those costs a whole budget each. What leaves is scored again,
like everything else, by `maskaudit.target.rescore` on draws of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskaudit.target import Target
from maskaudit.verdict.limits import MAJORITY_DRAWS

#: The share of as many fresh draws as decide in the end that a candidate must win: an audit counts it as broken from a
#: share of 0.65 of other draws on, which one whose true share is 0.9 misses in less than one case in a thousand.
SHARE = 0.9


@dataclass(frozen=True)
class Recheck:
    """Looks at candidates for points with labels `y` (N,) and inputs of `shape`."""

    target: Target
    y: Tensor
    shape: torch.Size

    def __call__(self, examples: Tensor, points: Tensor) -> Tensor:
        """Which of the examples (n, …) of `points` (n,) break their point beyond doubt, bool (n,)."""
        target, labels = self.target, self.y[points]
        examples = examples.reshape(-1, *self.shape)
        won = torch.zeros_like(labels)
        for _ in range(MAJORITY_DRAWS):
            won += target.margin(target.raw(examples), labels) > 0
        return won >= SHARE * MAJORITY_DRAWS


def confirmation(target: Target, x: Tensor, y: Tensor) -> Recheck | None:
    """The look at points (N, …) with labels (N,) that a random model needs; None for all others."""
    return Recheck(target, y, x.shape[1:]) if target.random else None


def look_after(limit: int) -> np.ndarray:
    """The numbers of steps, of `limit` at most, after which a point is looked at: powers of two. Bool (limit + 1,)."""
    marks = np.zeros(limit + 1, dtype=bool)
    marks[[2**k for k in range(1, limit.bit_length()) if 2**k < limit]] = True
    return marks
