"""`python -m tests.second_device LIBRARY MODEL DEVICE …`: audits of a small model on each device, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit import api
from maskaudit.settings import AuditSettings

from . import register

POINTS, SIDE, CLASSES = 40, 4, 3


class Quantised(nn.Module):
    """A network behind a step function, which hides its gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, K)."""
        scores: Tensor = self.net(torch.round(x * 8) / 8)
        return scores


class Mixing(nn.Module):
    """A network that keeps a tensor where it was made, and adds it to its inputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.shift = net, torch.zeros(SIDE)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, K)."""
        scores: Tensor = self.net(x + self.shift)
        return scores


def network() -> nn.Module:
    """Convolution, normalisation, pooling and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(6 * SIDE * SIDE // 4, CLASSES),
    )  # fmt: skip


MODELS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda net: net, "quantised": Quantised, "mixing": Mixing,
}  # fmt: skip
EPS = 0.1


def audited(name: str, device: str) -> dict[str, Any]:
    """The report of an audit of the model."""
    torch.manual_seed(0)
    x, net = torch.rand(POINTS, 1, SIDE, SIDE), network().eval()
    y = net(x).argmax(1)
    settings = AuditSettings(budget="quick", device=device, samples=POINTS)
    return api.audit(MODELS[name](net), (x, y), eps=EPS, settings=settings).report.to_dict()


def main(library: str, name: str, *devices: str) -> None:
    """Print the reports."""
    register(Path(library))
    reports = {}
    for device in devices:
        try:
            reports[device] = audited(name, device)
        except api.MaskauditError as error:
            reports[device] = {"error": str(error)}
    print(json.dumps({"reports": reports, "kernels": torch.ops.second_device.kernels()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
