"""Models of known behaviour that the attack tests run against, and what judges their examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.attacks.interface import Attempt
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

LINF = ThreatModel("Linf", 0.2)
L2 = ThreatModel("L2", 1.0)


class Wrapped(nn.Module):
    """`after(base(before(x)))`."""

    def __init__(
        self,
        base: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.base, self.before, self.after = base, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.base(self.before(x)))


class _ZeroBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


def one_hot(base: nn.Module) -> nn.Module:
    """Only the predicted class comes out."""
    return Wrapped(base, after=lambda z: F.one_hot(z.argmax(1), z.shape[1]).float())


def saturated(base: nn.Module) -> nn.Module:
    """softmax(50·z): exactly 0 and 1 on nearly all inputs."""
    return Wrapped(base, after=lambda z: (50 * z).softmax(1))


def quantised(base: nn.Module, levels: int) -> nn.Module:
    """Pixels rounded to `levels` values."""
    return Wrapped(base, before=lambda x: (x * (levels - 1)).round() / (levels - 1))


def sine(base: nn.Module) -> nn.Module:
    """A ripple on the input that makes local gradients meaningless."""
    return Wrapped(base, before=lambda x: x + 0.02 * torch.sin(2000 * x))


def zero_backward(base: nn.Module) -> nn.Module:
    """Right forward, zero backward."""
    return Wrapped(base, before=_ZeroBackward.apply)


def flattened(base: nn.Module) -> nn.Module:
    """The same classifier on vectors (N, 64)."""
    return Wrapped(base, before=lambda x: x.view(-1, 1, 8, 8))


def binary(base: nn.Module) -> nn.Module:
    """Two classes: digit below 5 or not."""
    return Wrapped(base, after=lambda z: torch.stack([z[:, :5].logsumexp(1), z[:, 5:].logsumexp(1)], 1))


@dataclass(frozen=True)
class Subjects:
    """The trained models with the test points both classify correctly."""

    standard: nn.Module
    robust: nn.Module
    x: Tensor
    y: Tensor
    pool: Tensor


def point_rng(n: int, seed: int = 0, stream: str = "test") -> PointRNG:
    """A generator for points 0 … n−1."""
    return PointRNG.create(seed, stream, torch.arange(n))


def survivors(model: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Points (N,) bool that an attack left unbroken, checked afresh; fails if an example is not admissible."""
    assert bool(threat.admissible(x_adv, x).all())
    target = Target(model)
    return ~(target.margin(target.scores(x_adv), y) > 0)


def assert_left_beyond_doubt(target: Target, attempt: Attempt, y: Tensor, limit: int) -> None:
    """Points of a random model had `limit` queries, or an example that wins most of 200 fresh draws; y (M ≥ N,)."""
    early = attempt.queries < limit
    with target:
        draws = [target.margin(target.raw(attempt.examples), y[: len(early)]) > 0 for _ in range(200)]
    assert bool((torch.stack(draws).double().mean(dim=0)[early] > 0.75).all())


def assert_same_fate(attack: Callable[..., Any], model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> None:
    """The same points break for batches of 7, of 256, and with the points in reverse order.

    A network's scores differ in the last bits between batch sizes, so one point in fifty may differ.
    """
    n = len(x)
    everywhere = torch.arange(n)
    fates = []
    for batch_size, order in ((256, everywhere), (7, everywhere), (256, everywhere.flip(0))):
        target = Target(model, batch_size=batch_size)
        rng = PointRNG.create(3, "test", order)
        examples = attack(target, x[order], y[order], threat=threat, rng=rng).examples
        fates.append(survivors(model, examples, x[order], y[order], threat)[order.argsort()])
    for other in fates[1:]:
        assert int((other != fates[0]).sum()) <= n // 50


class Noisy(nn.Module):
    """A network with Gaussian noise on its scores, new in every pass."""

    def __init__(self, base: nn.Module, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale

    def forward(self, x: Tensor) -> Tensor:
        z = self.base(x)
        return z + self.scale * torch.randn_like(z)


def correct_points(model: nn.Module, x: Tensor, y: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The first `n` points that the model classifies correctly."""
    right = Target(model).scores(x).argmax(1) == y
    return x[right][:n], y[right][:n]
