"""The model from outside: gradient against central differences, randomness between draws, output kind."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.preserve import preserved_random_state
from maskaudit.rng import PointRNG
from maskaudit.target import PROBABILITY_TOLERANCE, Target
from maskaudit.trace.records import GradientHealth, OutputKind

#: Step sizes of the central differences, in units of ε: the smaller one sees ripples, the larger one what an
#: attack's step would gain.
DIFFERENCE_STEPS = (0.25, 1 / 16)
#: Random sign directions per point in a thorough look, and in the first one, which is to be cheap.
DIRECTIONS, FEW_DIRECTIONS = 4, 2
#: Derivatives of cross-entropy and gradients of the margin above this cannot underflow in float32 when multiplied.
NO_UNDERFLOW = 1e-12
#: Logits beyond this range saturate softmax in float32 (e^-104 is 0).
LARGE_LOGIT = 104.0


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All global generators seeded inside, restored afterwards."""
    with preserved_random_state():
        if torch.cuda.is_available():
            torch.manual_seed(seed)
        else:  # the same without the stack trace that torch keeps for a CUDA that is not there yet
            torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


def twin(target: Target, model: nn.Module | Callable[[Tensor], Any] | None = None, *, draws: int = 1) -> Target:
    """The same settings and the same ledger around another callable, one draw per evaluation."""
    other = copy.copy(target)
    if model is not None:
        other.model = model
    other.draws = draws
    return other


@dataclass(frozen=True)
class Pass:
    """One recorded pass: the input leaf (N, …), the scores (N, K) on its graph, and the gradient of the margin (N, …).

    `margin_grad` is None where the model gives none, `random` says whether another pass may answer otherwise.
    """

    leaf: Tensor
    scores: Tensor
    margin_grad: Tensor | None
    random: bool


def margin_gradient(target: Target, leaf: Tensor, scores: Tensor, y: Tensor) -> Tensor | None:
    """Gradient (N, …) of the logit margin; the graph is kept. None where there is none, or an op has no derivative."""
    return _gradient(target, target.margin(scores, y), leaf)


def gradient_health(target: Target, seen: Pass, y: Tensor, eps: float, *, directions: int) -> GradientHealth:
    """Zero shares, and correlation of ⟨∇margin, u⟩ with central differences over random sign directions u.

    Every evaluation of a random model uses the same random numbers, so it is judged as one draw.
    """
    grad = seen.margin_grad
    if grad is None:
        return GradientHealth(False, 1.0, 1.0, tuple((eps * step, 0.0) for step in DIFFERENCE_STEPS))
    x = seen.leaf.detach()
    rng = PointRNG.create(target.seed, "trace directions", torch.arange(len(x)))
    signs = [rng.signs(x.shape[1:], step=k).to(x) for k in range(directions)]
    agreement = tuple(
        (eps * step, _agreement(twin(target), x, y, grad, signs, eps * step, together=not seen.random))
        for step in DIFFERENCE_STEPS
    )
    return GradientHealth(True, _zero_share(grad), _entropy_zero_share(target, seen, y, grad), agreement)


def _entropy_zero_share(target: Target, seen: Pass, y: Tensor, margin: Tensor) -> float:
    """Share of points where the gradient of cross-entropy is exactly zero; no pass is spent where none can be."""
    scores = seen.scores.detach().requires_grad_(True)
    (outer,) = torch.autograd.grad(F.cross_entropy(scores, y, reduction="sum"), scores)
    safe = float(outer.abs().amax(dim=1).min()) > NO_UNDERFLOW
    if safe and float(margin.flatten(1).abs().amax(dim=1).min()) > NO_UNDERFLOW:
        return 0.0
    grad = _gradient(target, F.cross_entropy(seen.scores, y, reduction="none"), seen.leaf)
    return 1.0 if grad is None else _zero_share(grad)


def _gradient(target: Target, value: Tensor, leaf: Tensor) -> Tensor | None:
    """Gradient of a sum with respect to the input, counted in the target's ledger; the graph is kept."""
    if not value.requires_grad:
        return None
    target.count_backward(len(leaf))
    try:
        (grad,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)
    except RuntimeError:  # an op without derivative: forward works, backward raises
        return None
    return None if grad is None else grad.detach()


def _agreement(
    target: Target, x: Tensor, y: Tensor, grad: Tensor, directions: list[Tensor], step: float, *, together: bool
) -> float:
    """Correlation (uncentred) of predicted and measured changes; 1 when nothing changes and nothing was predicted."""
    low, high = target.bounds
    around = [(x + side * step * u).clamp(low, high) for u in directions for side in (1, -1)]
    margins = _margins(target, around, y, together=together)
    changes = [plus - minus for plus, minus in zip(around[::2], around[1::2], strict=True)]
    p = torch.cat([(change * grad).flatten(1).double().sum(dim=1) for change in changes])
    m = torch.cat([(plus - minus).double() for plus, minus in zip(margins[::2], margins[1::2], strict=True)])
    finite = torch.isfinite(p) & torch.isfinite(m)
    p, m = p[finite], m[finite]
    scale = p.norm() * m.norm()
    if float(scale) == 0.0:
        return 1.0 if float(p.norm()) == float(m.norm()) else 0.0
    return float((p @ m) / scale)


def _margins(target: Target, batches: list[Tensor], y: Tensor, *, together: bool) -> list[Tensor]:
    """Margins (N,) of equally large batches: in one pass, or each in its own under the same random numbers."""
    if together:
        with seeded(target.seed):
            scores = target.scores(torch.cat(batches))
        return list(target.margin(scores, y.repeat(len(batches))).split(len(y)))
    margins = []
    for batch in batches:
        with seeded(target.seed):
            margins.append(target.margin(target.scores(batch), y))
    return margins


def _zero_share(grad: Tensor) -> float:
    return float((grad.flatten(1) == 0).all(dim=1).double().mean())


def flat_share(scores: Tensor, y: Tensor) -> float:
    """Share of points where the derivative of cross-entropy with respect to the scores (N, K) is exactly zero."""
    leaf = scores.detach().float().clone().requires_grad_(True)  # scores of inference mode do not take gradients
    (grad,) = torch.autograd.grad(F.cross_entropy(leaf, y, reduction="sum"), leaf)
    return _zero_share(grad)


def output_kind(raw: Tensor, flat: float) -> OutputKind:
    """What the raw output (N, K) is, from its values on the traced points; `flat` as `flat_share` gives it."""
    values = raw.detach().double()
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
