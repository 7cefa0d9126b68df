"""The model from outside: its settings under another seed or another callable."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.target import Target
from maskaudit.trace.records import ModelKind


def copy_of(target: Target, model: nn.Module | Callable[[Tensor], Any] | None = None, *, draws: int = 1) -> Target:
    """The same settings and the same ledger around another callable, one draw per evaluation."""
    other = copy.copy(target)
    if model is not None:
        other.model = model
    other.draws = draws
    return other


def loss_slope(scores: Tensor, y: Tensor) -> Tensor:
    """Derivative (N, K) of cross-entropy with respect to the scores (N, K), in the arithmetic of an attack."""
    leaf = scores.detach().float().clone().requires_grad_(True)  # scores of inference mode do not take gradients
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(F.cross_entropy(leaf, y, reduction="sum"), leaf)
    return slope


def useless(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Per point (N,) of a gradient (N, …): it is exactly zero; it has an entry that is not finite."""
    entries = grad.flatten(1)
    return (entries == 0).all(dim=1), ~torch.isfinite(entries).all(dim=1)


def vanishes(grad: Tensor) -> Tensor:
    """Points (N,) at which a gradient (N, …) is exactly zero or has an entry that is not finite."""
    zero, broken = useless(grad)
    return zero | broken


def zero_share(grad: Tensor) -> float:
    """Share of the points at which the gradient vanishes."""
    return float(vanishes(grad).double().mean())


def correlation(predicted: Tensor, measured: Tensor) -> float | None:
    """Uncentred correlation of changes (M,); None when both vanish, 0 when one does."""
    lengths = float(predicted.norm()), float(measured.norm())
    scale = lengths[0] * lengths[1]
    if scale:
        return float(predicted @ measured) / scale
    return None if lengths[0] == lengths[1] else 0.0


def model_kind(model: object) -> ModelKind:
    """What a trace can see of a model."""
    if isinstance(model, torch.jit.ScriptModule):
        return "torchscript"
    return "module" if isinstance(model, nn.Module) else "callable"
