"""Architectures of published checkpoints, written anew from their descriptions; the names are those of the weights.

Every factory returns a module for inputs in [0, 1]; normalisation that the authors applied is part of it where `mean`
and `std` are given here rather than on the command line.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dense(widths: Sequence[int] = (784, 100, 100, 10)) -> nn.Sequential:
    """Flatten, then linear layers with ReLU between them: weights `1`, `3`, …"""
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] * bool(number) + [nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


def strided(
    convs: Sequence[Sequence[int]] = ((1, 16, 4, 2), (16, 32, 4, 2)), hidden: int = 100, side: int = 7, padding: int = 1
) -> nn.Sequential:
    """Convolutions (inputs, outputs, kernel, stride) with ReLU, flattened, then two linear layers: weights `0`, …"""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in convs:
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
    flat = convs[-1][1] * side * side
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class _Small(nn.Module):
    """Convolutions `conv1`, …, each followed by ReLU and a maximum over 2 × 2, then linear layers `fc1`, …"""

    def __init__(self, convs: Sequence[nn.Conv2d], widths: Sequence[int], pool: int) -> None:
        super().__init__()
        self.convs, self.linears, self.pool = len(convs), len(widths) - 1, pool
        for number, conv in enumerate(convs, 1):
            self.add_module(f"conv{number}", conv)
        for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
            self.add_module(f"fc{number}", nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, self.convs + 1):
            x = torch.relu(self.get_submodule(f"conv{number}")(x))
            x = F.max_pool2d(x, self.pool) if self.pool > 1 else x
        x = x.flatten(1)
        for number in range(1, self.linears):
            x = torch.relu(self.get_submodule(f"fc{number}")(x))
        scores: Tensor = self.get_submodule(f"fc{self.linears}")(x)
        return scores


def small(
    convs: Sequence[Sequence[int]] = (), widths: Sequence[int] = (784, 128, 10), stride: int = 1, pool: int = 2
) -> nn.Module:
    """Convolutions (inputs, outputs, kernel, padding) and linear layers of such widths."""
    return _Small([nn.Conv2d(i, o, k, stride, p) for i, o, k, p in convs], widths, pool)


class _Block(nn.Module):
    """Two 3 × 3 convolutions beside an identity whose new channels are zeros (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int, centred: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        new = outputs - inputs
        self.stride, self.pad = stride, (new // 2, new // 2) if centred else (0, new)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pad)))


class _ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for number, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            first = _Block(inputs, outputs, 1 if number == 1 else 2, centred=True)
            rest = [_Block(outputs, outputs, 1, centred=True) for _ in range(2)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for number in (1, 2, 3):
            x = self.get_submodule(f"layer{number}")(x)
        scores: Tensor = self.linear(x.mean((2, 3)))
        return scores


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10 (He et al. 2016)."""
    return _ResNet20()


class _Rounded(torch.autograd.Function):
    """Rounding with the gradient of the identity (straight-through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def _few_levels(x: Tensor, levels: int) -> Tensor:
    rounded: Tensor = _Rounded.apply(x * (levels - 1))
    return rounded / (levels - 1)


def _few_bits(weight: Tensor, bits: int) -> Tensor:
    """Weights by tanh in [−m, m] on 2^(bits + 1) − 1 levels (DoReFa, Zhou et al. 2016)."""
    bounded = torch.tanh(weight)
    most = bounded.abs().max()
    return (2 * _few_levels(bounded / (2 * most) + 0.5, 2 ** (bits + 1) - 1) - 1) * most


class _FewBitsConv(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int, stride: int, bits: int) -> None:
        super().__init__(inputs, outputs, 3, stride, 1, bias=False)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, _few_bits(self.weight, self.bits), self.bias)


class _FewBitsLinear(nn.Linear):
    def __init__(self, inputs: int, outputs: int, bits: int) -> None:
        super().__init__(inputs, outputs)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _few_bits(self.weight, self.bits), _few_bits(self.bias, self.bits))


class _Norm(nn.Module):
    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.bits = str(bits)
        self.bn_dict = nn.ModuleDict({self.bits: nn.BatchNorm2d(channels, eps=1e-4)})

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn_dict[self.bits](x)
        return normed


class _FewBitsBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, bits: int, weight_bits: int) -> None:
        super().__init__()
        self.conv1 = _FewBitsConv(inputs, outputs, stride, weight_bits)
        self.bn1 = _Norm(outputs, bits)
        self.conv2 = _FewBitsConv(outputs, outputs, 1, weight_bits)
        self.bn2 = _Norm(outputs, bits)
        self.new, self.stride, self.levels = outputs - inputs, stride, 2**bits

    def forward(self, x: Tensor) -> Tensor:
        out = _few_levels(self.bn1(self.conv1(x)).clamp(0, 1), self.levels)
        out = self.bn2(self.conv2(out)) + F.pad(x, (0, 0, 0, 0, 0, self.new))[:, :, :: self.stride, :: self.stride]
        return _few_levels(out.clamp(0, 1), self.levels)


class _FewBitsResNet20(nn.Module):
    def __init__(self, bits: int, weight_bits: int) -> None:
        super().__init__()
        self.levels = 2**bits
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = _Norm(16, bits)
        for name, (inputs, outputs) in zip("246", ((16, 16), (16, 32), (32, 64)), strict=True):
            first = _FewBitsBlock(inputs, outputs, 1 if inputs == outputs else 2, bits, weight_bits)
            rest = [_FewBitsBlock(outputs, outputs, 1, bits, weight_bits) for _ in range(2)]
            self.add_module(f"layers_{name}n", nn.Sequential(first, *rest))
        self.fc = _FewBitsLinear(64, 10, weight_bits)

    def forward(self, x: Tensor) -> Tensor:
        x = _few_levels(self.bn1(self.conv1(x)).clamp(0, 1), self.levels)
        for name in "246":
            x = self.get_submodule(f"layers_{name}n")(x)
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


def few_bits_resnet20(bits: int = 4, weight_bits: int = 4) -> nn.Module:
    """ResNet-20 with activations and weights of few bits, the gradient straight through the rounding."""
    return _FewBitsResNet20(bits, weight_bits)


class _SplineLinear(nn.Module):
    """A layer of a Kolmogorov-Arnold network: SiLU and cubic B-splines of every input, summed with weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base_weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.spline_weight = nn.Parameter(torch.zeros(outputs, inputs, 8))
        self.spline_scaler = nn.Parameter(torch.zeros(outputs, inputs))
        self.register_buffer("grid", torch.zeros(inputs, 12))

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.spline_weight * self.spline_scaler.unsqueeze(-1)).flatten(1)
        return F.linear(F.silu(x), self.base_weight) + F.linear(self._splines(x).flatten(1), weight)

    def _splines(self, x: Tensor) -> Tensor:
        """Bases (N, inputs, 8) by the recursion of Cox and de Boor."""
        x, grid = x.unsqueeze(-1), self.grid
        bases = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
        for k in (1, 2, 3):
            left = (x - grid[:, : -k - 1]) / (grid[:, k:-1] - grid[:, : -k - 1])
            right = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:-k])
            bases = left * bases[..., :-1] + right * bases[..., 1:]
        return bases


class _Splines(nn.Module):
    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_SplineLinear(inputs, outputs) for inputs, outputs in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        x = (x.flatten(1) - 0.5) / 0.5
        for layer in self.layers:
            x = layer(x)
        return x


def splines(widths: Sequence[int] = (784, 10)) -> nn.Module:
    """A Kolmogorov-Arnold network (Liu et al. 2024) of such widths, its inputs brought to [−1, 1]."""
    return _Splines(widths)


class _Spike(torch.autograd.Function):
    """1 where the potential reaches the threshold; backward the derivative of an arctangent, as spikingjelly has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        slope: Tensor = gradient / (1 + (math.pi * x).square())
        return slope


class _Spiking(nn.Module):
    """Pixels as rates of random spikes, one linear layer, leaky integrate-and-fire neurons; answers are their rates."""

    def __init__(self, steps: int, tau: float) -> None:
        super().__init__()
        self.layer = nn.Sequential(OrderedDict([("1", nn.Linear(784, 10, bias=False))]))
        self.steps, self.tau = steps, tau

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        potential = fired = torch.zeros(len(x), 10, dtype=x.dtype, device=x.device)
        for _ in range(self.steps):
            spikes = (torch.rand_like(x) <= x).to(x.dtype)
            potential = potential + (self.layer(spikes) - potential) / self.tau
            out: Tensor = _Spike.apply(potential - 1)
            potential, fired = potential * (1 - out), fired + out
        return fired / self.steps


def spiking(steps: int = 100, tau: float = 2.0) -> nn.Module:
    """A spiking network with a Poisson encoder: it answers at random, and nothing of it is differentiable in x."""
    return _Spiking(steps, tau)


class _KerasResNet8(nn.Module):
    """The residual network of MLPerf Tiny as Keras wrote it, its padding at the far side; the answer is a softmax."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        widths = ((3, 16, 3), (16, 16, 3), (16, 16, 3), (16, 32, 3), (32, 32, 3), (16, 32, 1), (32, 64, 3), (64, 64, 3))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k) for i, o, k in (*widths, (32, 64, 1)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(n, eps=1e-3) for n in (16, 16, 16, 32, 32, 64, 64))
        self.dense = nn.Linear(64, 10)
        self.softmax = softmax

    def _conv(self, x: Tensor, number: int, stride: int = 1) -> Tensor:
        conv = self.convs[number]
        assert isinstance(conv, nn.Conv2d)
        total = max(conv.kernel_size[0] - stride, 0)
        low, high = total // 2, total - total // 2
        return F.conv2d(F.pad(x, (low, high, low, high)), conv.weight, conv.bias, stride)

    def forward(self, x: Tensor) -> Tensor:
        conv, norms = self._conv, self.norms
        x = torch.relu(norms[0](conv(x, 0)))
        x = torch.relu(x + norms[2](conv(torch.relu(norms[1](conv(x, 1))), 2)))
        x = torch.relu(conv(x, 5, 2) + norms[4](conv(torch.relu(norms[3](conv(x, 3, 2))), 4)))
        x = torch.relu(conv(x, 8, 2) + norms[6](conv(torch.relu(norms[5](conv(x, 6, 2))), 7)))
        scores: Tensor = self.dense(x.mean((2, 3)))
        return scores.softmax(1) if self.softmax else scores


def keras_resnet8(softmax: bool = True) -> nn.Module:
    """ResNet-8 for CIFAR-10 with the softmax at its end, or without it."""
    return _KerasResNet8(softmax)
