"""Small networks of branches on the digits: an honest one, and such whose robustness is the work of one branch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.data import load_data


class Inception(nn.Module):
    """Four branches over one stem, joined as channels; `bent` is applied to what the branch `b5` is given."""

    def __init__(self, bent: Callable[[Tensor], Tensor] = lambda h: h) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.b1 = nn.Conv2d(8, 6, 1)
        self.b3_1, self.b3_2 = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.b5 = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 5, padding=2))
        self.pool = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(24 * 64, 10)
        self.bent = bent

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        ways = self.b1(h), self.b3_2(F.relu(self.b3_1(h))), self.b5(self.bent(h)), self.pool(F.avg_pool2d(h, 3, 1, 1))
        return self.head(F.relu(torch.cat(ways, 1)).flatten(1))


def trained(model: nn.Module, steps: int = 250) -> nn.Module:
    """The network after some steps of Adam on the digits, from a fixed seed."""
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    data = load_data("digits", split="train")
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        rows = torch.randint(len(data.x), (64,))
        optimiser.zero_grad()
        F.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
        optimiser.step()
    return model.eval()


class Drowning(nn.Module):
    """An honest network beside a branch whose tiny, fast ripple drowns the gradient and changes no answer."""

    def __init__(self, honest: nn.Module) -> None:
        super().__init__()
        self.honest, self.ripple = honest, Ripple()

    def forward(self, x: Tensor) -> Tensor:
        return self.honest(x) + self.ripple(x)


class Ripple(nn.Module):
    """(N, 10): a ripple of every pixel, of height 0.02 and slope 2,000 times that."""

    def __init__(self) -> None:
        super().__init__()
        signs = torch.randn(10, 64, generator=torch.Generator().manual_seed(1))
        self.register_buffer("signs", signs)

    def forward(self, x: Tensor) -> Tensor:
        return 0.02 * torch.sin(2e3 * x.flatten(1)) @ self.signs.T
