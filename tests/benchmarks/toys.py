"""Models for the peers whose answers can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers.interface import CountingModel, PeerTask
from maskaudit.threat import ThreatModel

THREAT = ThreatModel("Linf", 0.1, (0.0, 1.0))


class Halves(nn.Module):
    """A linear classifier on vectors: class 1 where the mean exceeds ½, margin proportional to the distance."""

    def __init__(self, gain: float = 10.0) -> None:
        super().__init__()
        self.readout = nn.Linear(8, 2)
        with torch.no_grad():
            self.readout.weight[:] = torch.stack([-torch.ones(8), torch.ones(8)]) * gain / 8
            self.readout.bias[:] = torch.tensor([gain / 2, -gain / 2])

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 2)."""
        return self.readout(x)


class Rounded(Halves):
    """The same decisions on the input rounded to twentieths: no gradient anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 2)."""
        return self.readout(torch.round(20 * x) / 20)


class Rippled(Halves):
    """The same with a fine sine on the input: a gradient that points anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 2)."""
        return self.readout(x + 0.04 * torch.sin(4000 * x))


class Constant(Halves):
    """Scores that do not depend on the input: no attack of any size succeeds."""

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 2)."""
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)


class Flipping(Halves):
    """Answers at random, one class as likely as the other."""

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 2)."""
        return self.readout(x) + torch.randn(len(x), 2)


def points(n: int = 40, *, distance: float = 0.05) -> tuple[Tensor, Tensor]:
    """Points (n, 8) of both classes with their mean at `distance` from the boundary."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    x = 0.5 + distance * (2 * y - 1)[:, None] + 0.02 * (2 * torch.rand(n, 8, generator=generator) - 1)
    return x - (x.mean(1) - 0.5 - distance * (2 * y - 1))[:, None], y


def task(model: nn.Module, *, distance: float = 0.05, random: bool = False, n: int = 40) -> PeerTask:
    """The model on such points, ε = 0.1."""
    x, y = points(n, distance=distance)
    return PeerTask(CountingModel(model.eval()), x, y, THREAT, seed=0, random=random)
