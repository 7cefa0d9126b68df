"""The model from outside: its settings under another seed or another callable, and the kind of its output."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.target import Target
from maskaudit.target.kinds import PROBABILITY_TOLERANCE
from maskaudit.trace.records import ModelKind, OutputKind

#: Logits beyond this range saturate softmax in float32 (e^-104 is 0).
LARGE_LOGIT = 104.0


def twin(target: Target, model: nn.Module | Callable[[Tensor], Any] | None = None, *, draws: int = 1) -> Target:
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
    """Points (N,) at which it is either."""
    zero, broken = useless(grad)
    return zero | broken


def zero_share(grad: Tensor) -> float:
    """Their share."""
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


def output_kind(raw: Tensor, flat: float) -> OutputKind:
    """What the raw output (N, K) is, from its values on the traced points; `flat` is the share of points on which
    the derivative of cross-entropy with respect to the scores is exactly zero."""
    values = raw.detach().double()
    if values[:1].numel() == 1:  # one number per point
        return "logits"
    sums = values.sum(dim=1)
    if bool((values >= 0).all()) and bool(((sums - 1).abs() <= PROBABILITY_TOLERANCE).all()):
        one_hot = bool(((values == 0) | (values == 1)).all()) and not raw.requires_grad
        return "hard labels" if one_hot else "probabilities"
    if bool((values <= 0).all()) and bool((values.exp().sum(dim=1) - 1).abs().max() <= PROBABILITY_TOLERANCE):
        return "log-probabilities"
    top, bottom = values.max(), values.min()
    pinned = ((values == top) | (values == bottom)).double().mean()
    if float(pinned) > 0.5 and values.shape[1] > 2 and len(values) > 2:
        return "clipped"
    gap = values.topk(2, dim=1).values.diff(dim=1).abs().median()
    if flat > 0 or float(gap) > LARGE_LOGIT:
        return "scaled logits"
    return "logits"
