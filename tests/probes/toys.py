"""Models whose figures are known by hand, and contexts to measure them in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.probes import PROBES
from maskaudit.probes.interface import AttackOutcome, Probe, ProbeContext
from maskaudit.results import AttackRow, Role
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.scores import detect_outputs
from maskaudit.threat import Norm, ThreatModel


def get(rule: str) -> Probe:
    """The registered probe `rule`."""
    return next(probe for probe in PROBES if probe.rule == rule)


UNIT = ThreatModel("L2", 0.5, (0.0, 1.0))
LINF = ThreatModel("Linf", 0.1, (0.0, 1.0))


def points(n: int, *shape: int, seed: int = 0) -> Tensor:
    """Uniform inputs (n, *shape) in the unit box, whatever the global generator."""
    return torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def context(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor | None = None,
    threat: ThreatModel = LINF,
    **settings: Any,
) -> Iterator[ProbeContext]:
    """An open target with a context; labels default to the model's own answers."""
    target = Target(model, bounds=threat.bounds, **settings)
    with target:
        if "outputs" not in settings:
            target.outputs = detect_outputs(target.raw(x))
        labels = target.scores(x).argmax(dim=1) if y is None else y
        yield ProbeContext(target, x, labels, threat, PointRNG.create(0, "test", torch.arange(len(x))))


class Linear(nn.Module):
    """z = scale · W x over flattened inputs, with a fixed random W."""

    def __init__(self, inputs: int, classes: int = 3, scale: float = 1.0, seed: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(scale * torch.randn(classes, inputs, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Quadratic(nn.Module):
    """Two classes: z_0 = 0, z_1 = bᵀx + ½ xᵀAx − shift, so that margin gradient and Hessian of class 0 are known."""

    def __init__(self, a: Tensor, b: Tensor, shift: float = 100.0) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        score = x @ self.b + 0.5 * ((x @ self.a) * x).sum(dim=1) - self.shift
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Through(nn.Module):
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


def relu_net(inputs: int, classes: int = 3, seed: int = 0) -> nn.Sequential:
    """A random network of two hidden ReLU layers over flattened inputs."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes)
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return net


def outcome(
    name: str, broken: list[int], *, kind: str = "gradient", role: Role = "challenger", status: Any = "ran"
) -> AttackOutcome:
    """An attack's row with the mask of points it broke (0 or 1 each)."""
    mask = torch.tensor(broken, dtype=torch.bool)
    row = AttackRow(name, name, kind, role, None, None, int(mask.sum()), len(mask), 0, 0, 0, 0, 0.0, status)
    return AttackOutcome(row, mask)


def norm_threat(norm: Norm) -> ThreatModel:
    """A threat model of either norm on the unit box."""
    return LINF if norm == "Linf" else UNIT
