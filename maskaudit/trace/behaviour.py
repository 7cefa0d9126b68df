"""The model from outside: gradient against central differences, randomness between draws, output kind."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.errors import ModelError
from maskaudit.preserve import preserved_random_state
from maskaudit.rng import PointRNG
from maskaudit.target import PROBABILITY_TOLERANCE, Target
from maskaudit.trace.records import GradientHealth, OutputKind

#: Step sizes of the central differences, in units of ε: the smaller one sees ripples, the larger one what an
#: attack's step would gain.
DIFFERENCE_STEPS = (0.25, 1 / 16)
#: Random sign directions per point.
DIRECTIONS = 4
#: Logits beyond this range saturate softmax in float32 (e^-104 is 0).
LARGE_LOGIT = 104.0


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All global generators seeded inside, restored afterwards."""
    with preserved_random_state():
        torch.manual_seed(seed)
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


def gradient_health(target: Target, x: Tensor, y: Tensor, eps: float) -> GradientHealth:
    """Zero shares, and correlation of ⟨∇margin, u⟩ with central differences over random sign directions u.

    Points (N, …); every evaluation uses the same random numbers, so a random model is judged as one draw.
    """
    single = twin(target)
    try:
        with seeded(target.seed):
            margin = single.value_and_grad(x, lambda s, rows: single.margin(s, y[rows]))
        with seeded(target.seed):
            entropy = single.value_and_grad(x, lambda s, rows: F.cross_entropy(s, y[rows], reduction="none"))
    except (ModelError, RuntimeError):  # an op without derivative: forward works, backward raises
        return GradientHealth(False, 1.0, 1.0, tuple((eps * step, 0.0) for step in DIFFERENCE_STEPS))
    rng = PointRNG.create(target.seed, "trace directions", torch.arange(len(x)))
    directions = [rng.signs(x.shape[1:], step=k).to(x) for k in range(DIRECTIONS)]
    agreement = tuple(
        (eps * step, _agreement(single, x, y, margin.grad, directions, eps * step)) for step in DIFFERENCE_STEPS
    )
    return GradientHealth(margin.connected, _zero_share(margin.grad), _zero_share(entropy.grad), agreement)


def _agreement(target: Target, x: Tensor, y: Tensor, grad: Tensor, directions: list[Tensor], step: float) -> float:
    """Correlation (uncentred) of predicted and measured changes; 1 when nothing changes and nothing was predicted."""
    predicted, measured = [], []
    low, high = target.bounds
    for direction in directions:
        plus, minus = (x + step * direction).clamp(low, high), (x - step * direction).clamp(low, high)
        with seeded(target.seed):
            gain = target.margin(target.scores(plus), y)
        with seeded(target.seed):
            gain = gain - target.margin(target.scores(minus), y)
        measured.append(gain.double())
        predicted.append(((plus - minus) * grad).flatten(1).double().sum(dim=1))
    p, m = torch.cat(predicted), torch.cat(measured)
    finite = torch.isfinite(p) & torch.isfinite(m)
    p, m = p[finite], m[finite]
    scale = p.norm() * m.norm()
    if float(scale) == 0.0:
        return 1.0 if float(p.norm()) == float(m.norm()) else 0.0
    return float((p @ m) / scale)


def _zero_share(grad: Tensor) -> float:
    return float((grad.flatten(1) == 0).all(dim=1).double().mean())


def flat_share(scores: Tensor, y: Tensor) -> float:
    """Share of points where the derivative of cross-entropy with respect to the scores (N, K) is exactly zero."""
    leaf = scores.detach().float().requires_grad_(True)
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
