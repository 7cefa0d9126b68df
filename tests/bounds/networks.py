"""Networks that bounds must hold for."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Convolution, normalisation, a residual sum, max pooling, PReLU, clamps, a sigmoid and a last softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.slopes, self.hidden, self.last = nn.PReLU(4), nn.Linear(36, 10), nn.Linear(10, 3)
        self.norm.running_mean += torch.randn(4) / 10
        self.norm.running_var += torch.rand(4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x)), inplace=True)
        h += x
        h = F.relu6(self.slopes(F.max_pool2d(h, 2)) - 0.5)
        return self.last(torch.sigmoid(self.hidden(h.flatten(1)))).log_softmax(1)


class Joined(nn.Module):
    """Average pooling, two branches joined, a leaky rectifier, an absolute value, a larger of two, a tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
        self.hidden, self.last = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.leaky_relu(self.left(x), 0.1), torch.maximum(self.right(x), self.left(x) / 2)], dim=1)
        h = F.avg_pool2d(both, 2).reshape(len(x), -1)
        return self.last(torch.tanh(self.hidden(h).abs() - 0.2).clamp(min=-0.1))


def mlp(*sizes: int, scale: float = 1.0) -> nn.Sequential:
    """Linear layers with rectifiers between them, their usual first weights times `scale`."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n, m in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(n, m), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
    with torch.no_grad():
        for weights in network.parameters():
            weights *= scale
    return network


def detector(inputs: int = 12, eps: float = 0.2) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network with a counterexample in one corner of a ball, where alone a unit of its second layer is on.

    Returns:
        The network, the point (1, D), its label (1,), and the counterexample (1, D).
    """
    net = mlp(inputs, 8, 4, 2)
    x, corner = torch.full((1, inputs), 0.5), torch.ones(inputs)
    corner[::3] = -1
    first, second, last = net[1], net[3], net[5]
    with torch.no_grad():
        for layer in (first, second, last):
            layer.weight *= 0.05
            layer.bias.zero_()
        for unit, group in enumerate(torch.arange(inputs).split(4)):
            first.weight[unit] = 0
            first.weight[unit, group] = corner[group] / eps
            first.bias[unit] = -(first.weight[unit] @ x[0]) - 2.0
        second.weight[0], second.bias[0] = 0, -5.7
        second.weight[0, : -(-inputs // 4)] = 1
        last.weight[:, 0] = torch.tensor([-20.0, 20.0])
        last.bias[0] = 1.0
    return net.eval(), x, torch.tensor([0]), x + eps * corner


def smooth_detector(
    activation: type[nn.Module], inputs: int = 32, eps: float = 0.2
) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of tanh or sigmoids with a counterexample in one corner of a ball; its units are saturated elsewhere.

    Returns:
        The network, the point (1, D) of class 0, and the counterexample (1, D).
    """
    least, groups = (-1.0 if activation is nn.Tanh else 0.0), torch.arange(inputs).split(4)
    x, corner = torch.full((1, inputs), 0.5), torch.ones(inputs)
    corner[::3] = -1
    first, second, last = nn.Linear(inputs, len(groups)), nn.Linear(len(groups), 3), nn.Linear(3, 2)
    with torch.no_grad():
        for unit, group in enumerate(groups):
            first.weight[unit] = 0
            first.weight[unit, group] = 2 * corner[group] / eps
            first.bias[unit] = -(first.weight[unit] @ x[0]) - 4.0
        for layer in (second, last):
            layer.weight *= 0.05
            layer.bias.zero_()
        second.weight[0] = 4.0
        second.bias[0] = -4 * len(groups) * (least + (1 - least) * 0.8)
        last.weight[:, 0], last.bias[0] = torch.tensor([-10.0, 10.0]), 20 * least + 6
    return nn.Sequential(first, activation(), second, activation(), last).eval(), x, x + eps * corner
