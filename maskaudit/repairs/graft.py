"""The value of one tensor with the gradient of another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Graft(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, source: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        _, source = inputs
        ctx.shape, ctx.dtype = source.shape, source.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].to(ctx.dtype).view(ctx.shape)


def graft(value: Tensor, source: Tensor) -> Tensor:
    """`value` bit for bit (signed zeros and infinities included), with the gradient flowing to `source`.

    Both have the same shape; `value` is floating, `source` lives on the graph.
    """
    if value.shape != source.shape:
        raise ValueError(f"Expected equal shapes, got {tuple(value.shape)} and {tuple(source.shape)}.")
    with torch.inference_mode(False), torch.enable_grad():
        value = value.clone() if value.is_inference() else value.detach()
        grafted: Tensor = _Graft.apply(value, source)  # type: ignore[no-untyped-call]
    return grafted
