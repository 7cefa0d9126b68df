"""Models that answer and whose gradient fails: the backward pass, or the forward pass where a gradient is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.trace.masked_models import Apply, Front, Masked


class MissingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clamp(0, 1) * 1.0


class RaisingVjp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def vjp(ctx: object, *gradients: Tensor) -> Tensor:
        raise KeyError("vjp")


class LeavingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        raise SystemExit(0)


class WrongShape(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0][:, :, :4]


class TooMany(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0]


class NaNBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.nan


class Honest(torch.autograd.Function):
    """x² with its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradients[0]


def overwritten(x: Tensor) -> Tensor:
    h = torch.exp(x)
    y = torch.log(h)
    h.sub_(1)
    return y


def without_detach(x: Tensor) -> Tensor:
    return torch.from_numpy(np.sqrt(x.numpy() ** 2))


def into_given_memory(x: Tensor) -> Tensor:
    result = torch.empty_like(x)
    torch.mul(x, 1.0, out=result)
    return result


def through_inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x * 1.0


def raising_hook(x: Tensor) -> Tensor:
    y = x * 1.0
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient[99])
    return y


class Refusing(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise ValueError("for inference only")
        return self.net(x)


def _front(function: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], nn.Module]:
    return lambda net: Front(net, Apply(function))


#: Mechanism, module and a fragment of the source line of each.
FAILING = (
    Masked("missing", _front(MissingBackward.apply), "failing-backward", "front", "class MissingBackward"),
    Masked("raising vjp", _front(RaisingVjp.apply), "failing-backward", "front", "def vjp"),
    Masked("leaving", _front(LeavingBackward.apply), "failing-backward", "front", "def backward"),
    Masked("wrong shape", _front(WrongShape.apply), "failing-backward", "front", "def backward"),
    Masked("too many", _front(TooMany.apply), "failing-backward", "front", "def backward"),
    Masked("NaN", _front(NaNBackward.apply), "lying-backward", "front", "def backward"),
    Masked("overwritten", _front(overwritten), "failing-backward", "front", "torch.exp(x)"),
    Masked("numpy", _front(without_detach), "cut", "front", "x.numpy()"),
    Masked("out", _front(into_given_memory), "cut", "front", "out=result"),
    Masked("inference", _front(through_inference), "cut", "front", "x * 1.0"),
    Masked("hook", _front(raising_hook), "failing-backward", "front", "y.register_hook"),
    Masked("refusing", Refusing, "failing-backward", "", "raise ValueError"),
)
