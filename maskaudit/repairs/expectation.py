"""Expectation over a model's randomness with common random numbers and as many draws as the gradient needs.

Athalye et al. 2018, section 4.2 (expectation over transformation). Common random
numbers make two evaluations of the same point comparable, so that Auto-PGD's
bookkeeping of rises and best iterates means something.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.target import Gradient, Target
from maskaudit.target.preserve import seeded

#: Draws after which the sign of the mean gradient is first looked at; it is looked at again after every doubling.
FIRST_LOOK = 8
#: The sign is stable when coordinates that carry this share of the mean gradient's mass kept it since the
#: number of draws was half as large, on the median point.
STABLE = 0.98


@dataclass
class Expectation:
    """The mean gradient over common draws: what a target does instead of taking `draws` of its own.

    Attributes:
        most_draws: draws at which averaging ends, stable or not.
        stream: seeds of the draws are stream, stream + 1, …
        spent: draws that the last evaluation took.
    """

    most_draws: int
    stream: int
    spent: int = 0

    def __call__(self, once: Callable[[], Gradient]) -> Gradient:
        """The mean over as many draws as it takes; `once` takes that of one."""
        total: Gradient | None = None
        earlier: Tensor | None = None
        for draw in range(self.most_draws):
            with seeded(self.stream + draw):
                one = once()
            total = one if total is None else total + one
            number = self.spent = draw + 1
            if number >= FIRST_LOOK and number & (number - 1) == 0:
                if earlier is not None and _stable(total.grad, earlier):
                    break
                earlier = total.grad.clone()
        assert total is not None
        return total.over(self.spent)


def expected(target: Target, most_draws: int, stream: int) -> Target:
    """`target` itself when its answers are certain or no draws are asked for, else one with its expected gradients.

    It shares the ledger, so every pass is counted; random states are put back after every draw.
    """
    if not target.random or most_draws < 1:
        return target
    other = copy.copy(target)
    other.worked_out = target.worked_out  # of the same model: what is known stays so
    other.averaging = Expectation(most_draws, stream)
    return other


def _stable(now: Tensor, before: Tensor) -> bool:
    """Whether the signs of two sums of gradients (N, …) agree by mass, on the median point."""
    mass = now.flatten(1).abs()
    kept = (mass * (now.sign() == before.sign()).flatten(1)).sum(dim=1) / mass.sum(dim=1).clamp_min(1e-30)
    return bool(torch.where(mass.sum(dim=1) > 0, kept, 1.0).median() >= STABLE)
