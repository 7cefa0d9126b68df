"""What hides the gradient of a healthy network: small wrappers, each with one culprit."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class ScaledLogits(nn.Module):
    """Logits times a constant: same decisions, cross-entropy flat in float32 (Carlini & Wagner 2016, distillation)."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        """Scaled logits (N, K)."""
        return self.network(x) * self.scale


class SharpSoftmax(nn.Module):
    """softmax(scale · z) as output: saturated probabilities, nothing left for score-based attacks either."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (N, K)."""
        return torch.softmax(self.network(x) * self.scale, dim=1)


class QuantisedInput(nn.Module):
    """Inputs in [0, 1] rounded to `levels` values (Xu et al. 2018, feature squeezing): gradient zero everywhere."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the rounded input."""
        return self.network(torch.round(x * (self.levels - 1)) / (self.levels - 1))


class SineInput(nn.Module):
    """x + amplitude · sin(frequency · x): a ripple whose slope drowns the gradient of the network."""

    def __init__(self, network: nn.Module, amplitude: float = 0.02, frequency: float = 2000.0) -> None:
        super().__init__()
        self.network, self.amplitude, self.frequency = network, amplitude, frequency

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the rippled input."""
        return self.network(x + self.amplitude * torch.sin(self.frequency * x))


class SteepTanh(nn.Module):
    """tanh(gain · x): saturated, hence flat, on all but the smallest inputs."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`, in [−1, 1]."""
        return torch.tanh(self.gain * x)


def saturate(network: nn.Module, gain: float) -> nn.Module:
    """A copy of a tanh network with every tanh made `gain` times steeper."""
    steep = copy.deepcopy(network)
    for module in list(steep.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Tanh):
                setattr(module, name, SteepTanh(gain))
    return steep


class ZeroBackward(nn.Module):
    """The identity with a backward pass that returns zero."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        blinded: Tensor = _ZeroGradient.apply(x)  # type: ignore[no-untyped-call]
        return self.network(blinded)


class HardLabels(nn.Module):
    """One-hot answers: no scores, no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """One-hot (N, K)."""
        scores = self.network(x)
        return torch.nn.functional.one_hot(scores.argmax(dim=1), scores.shape[1]).to(x.dtype)


class SoftmaxOutput(nn.Module):
    """Honest probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (N, K)."""
        return torch.softmax(self.network(x), dim=1)


class _ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)
