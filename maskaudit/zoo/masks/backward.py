"""Masks whose forward pass is the identity and whose backward pass is not.

A custom `torch.autograd.Function` may return anything as gradient (Athalye et al. 2018, section 3.1:
shattered gradients through non-standard operations).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from maskaudit.sums import column
from maskaudit.zoo.masks.base import Mask

#: Length of the noise that is added to a gradient, in units of the gradient's own.
NOISE = 10.0


class _Blinded(Mask):
    """A network behind the identity, whose backward pass is that of `front`."""

    front: type[_Identity]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        blinded: Tensor = self.front.apply(x)  # type: ignore[no-untyped-call]
        return self.network(blinded)


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()


class _ZeroGradient(_Identity):
    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


class _RandomGradient(_Identity):
    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return torch.randn_like(gradient)


class _FlippedGradient(_Identity):
    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return -gradient


class _NoisyGradient(_Identity):
    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        noise = torch.randn_like(gradient)
        longer = NOISE * gradient.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1).clamp_min(1e-30)
        return gradient + column(longer, gradient) * noise


class ZeroBackward(_Blinded):
    """The identity with a backward pass that returns zero."""

    front = _ZeroGradient


class RandomBackward(_Blinded):
    """The identity with a backward pass that returns noise."""

    front = _RandomGradient


class FlippedBackward(_Blinded):
    """The identity with a backward pass that points the other way."""

    front = _FlippedGradient


class NoisyBackward(_Blinded):
    """The identity with a backward pass that adds noise ten times as long as the gradient."""

    front = _NoisyGradient
