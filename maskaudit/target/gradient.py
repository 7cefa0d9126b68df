"""What a pass with a gradient gives, and how those of several draws or batches become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gradient:
    """Result of `Target.value_and_grad`.

    Attributes:
        scores: class scores (N, K), averaged over draws for a random model.
        value: the objective per point (N,).
        grad: its gradient with respect to the input (N, …); zero where the model gives none.
        connected: whether the output depended on the input in the autograd graph at all, and the backward pass ended.
    """

    scores: Tensor
    value: Tensor
    grad: Tensor
    connected: bool

    def __add__(self, other: Gradient) -> Gradient:
        """The sum of two draws at the same points."""
        connected = self.connected and other.connected
        return Gradient(self.scores + other.scores, self.value + other.value, self.grad + other.grad, connected)

    def over(self, draws: int) -> Gradient:
        """The mean, of a sum of so many draws; a copy of one, whose scores the model may write over."""
        if draws == 1:
            return Gradient(self.scores.clone(), self.value, self.grad, self.connected)
        return Gradient(self.scores / draws, self.value / draws, self.grad / draws, self.connected)

    @staticmethod
    def joined(parts: Sequence[Gradient]) -> Gradient:
        """The gradients of several batches as one."""
        if len(parts) == 1:
            return parts[0]
        scores, value, grad = (torch.cat([getattr(p, name) for p in parts]) for name in ("scores", "value", "grad"))
        return Gradient(scores, value, grad, all(p.connected for p in parts))
