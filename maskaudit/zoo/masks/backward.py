"""Masks whose forward pass is the identity and whose backward pass is not.

A custom `torch.autograd.Function` may return anything as gradient (Athalye et al. 2018, section 3.1:
shattered gradients through non-standard operations).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from maskaudit.zoo.masks.base import Mask

#: Length of the noise that is added to a gradient, in units of the gradient's own.
NOISE = 10.0


class ZeroBackward(Mask):
    """The identity with a backward pass that returns zero."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        blinded: Tensor = _ZeroGradient.apply(x)  # type: ignore[no-untyped-call]
        scores: Tensor = self.network(blinded)
        return scores


class RandomBackward(Mask):
    """The identity with a backward pass that returns noise."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        blinded: Tensor = _RandomGradient.apply(x)  # type: ignore[no-untyped-call]
        scores: Tensor = self.network(blinded)
        return scores


class FlippedBackward(Mask):
    """The identity with a backward pass that points the other way."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        blinded: Tensor = _FlippedGradient.apply(x)  # type: ignore[no-untyped-call]
        scores: Tensor = self.network(blinded)
        return scores


class NoisyBackward(Mask):
    """The identity with a backward pass that adds noise ten times as long as the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        blinded: Tensor = _NoisyGradient.apply(x)  # type: ignore[no-untyped-call]
        scores: Tensor = self.network(blinded)
        return scores


class _ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


class _RandomGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.randn_like(gradient)


class _FlippedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class _NoisyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        noise = torch.randn_like(gradient)
        shape = (-1, *[1] * (gradient.dim() - 1))
        longer = NOISE * gradient.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1).clamp_min(1e-30)
        return gradient + longer.view(shape) * noise
