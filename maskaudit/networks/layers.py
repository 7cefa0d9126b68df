"""Layers of the built-in architectures that torch does not bring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Scores are kept this far from 0 and 1, where the normal quantile is infinite.
QUANTILE_MARGIN = 1e-6
#: Shares of red, green and blue in luma, ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)
#: Mean of the running maximum of a quantised layer's inputs takes this share of each new batch.
RANGE_MOMENTUM = 0.1


class Skipped(nn.Module):
    """x + inner(x), for a module that keeps the shape."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """The shape of `x`."""
        out: Tensor = self.inner(x)
        return x + out


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), without normalisation; a 1×1 convolution where shapes change (He et al. 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride=stride)
        self.activation: Callable[[Tensor], Tensor] = F.relu

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, channels_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        inner: Tensor = self.second(self.activation(self.first(self.activation(x))))
        return inner + self.shortcut(x)


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)) (He et al. 2016, arXiv 1512.03385); normalised 1×1 shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, channels_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        return self.activation(self.inner(x) + self.shortcut(x))


class Grey(nn.Module):
    """Colour images (N, 3, H, W) as one channel of luma, ITU-R BT.601; grey images as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 1, H, W)."""
        return luma(x)


def luma(x: Tensor) -> Tensor:
    """Luma (N, 1, H, W) of colour images (N, 3, H, W), ITU-R BT.601; grey images as they are."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


class TokenMixer(nn.Module):
    """Transformer blocks over patch features (N, D, h, w), with learned positions; the mean token (N, D)."""

    def __init__(self, width: int, tokens: int, depth: int, heads: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.ModuleList(Attention(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        """Mean token (N, D)."""
        tokens = patches.flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).mean(1)


class Attention(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron, both residual (Dosovitskiy et al. 2021, eq. 2 and 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T, D)."""
        n, t, d = tokens.shape
        query, key, value = (
            part.view(n, t, self.heads, d // self.heads).transpose(1, 2)
            for part in self.project(self.norms[0](tokens)).chunk(3, dim=2)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, t, d)
        tokens = tokens + self.merge(mixed)
        return tokens + self.perceptron(self.norms[1](tokens))


class QuantisedLayer(nn.Module):
    """A convolution or linear layer whose weights and inputs are rounded to `bits` bits, the gradient passed through.

    Quantisation-aware training (Jacob et al. 2018, arXiv 1712.05877) with the straight-through
    estimator (Bengio et al. 2013, arXiv 1308.3432): an honest stand-in for the gradient of the rounding.
    """

    largest: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, bits: int) -> None:
        super().__init__()
        self.layer, self.bits = layer, bits
        self.register_buffer("largest", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives for rounded inputs and rounded weights."""
        if self.training:
            self.largest.lerp_(x.detach().abs().amax(), RANGE_MOMENTUM)
        inputs = straight_through(x.clamp(-self.largest, self.largest), self.largest, self.bits)
        weight = straight_through(self.layer.weight, self.layer.weight.detach().abs().amax(), self.bits)
        if isinstance(self.layer, nn.Linear):
            return F.linear(inputs, weight, self.layer.bias)
        return F.conv2d(inputs, weight, self.layer.bias, self.layer.stride, self.layer.padding)


def straight_through(value: Tensor, largest: Tensor, bits: int) -> Tensor:
    """`value` rounded to the symmetric grid of `bits` bits that ends at ±`largest`, with the gradient of `value`."""
    step = largest.clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    rounded = torch.round(value / step) * step
    return value + (rounded - value).detach()


class BoundedOutput(nn.Module):
    """bound · tanh(z / bound): logits that cannot grow."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (N, K) inside ±bound."""
        return self.bound * torch.tanh(logits / self.bound)


class Ensemble(nn.Module):
    """The mean of the members' softmax probabilities."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits (members, N, K)."""
        return torch.stack([member(x) for member in self.members])

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (N, K)."""
        return self.member_logits(x).softmax(2).mean(0)


class SmoothedUnits(nn.Module):
    """A shallow classifier smoothed by Gaussian noise in closed form, as normal quantiles of its scores.

    The classifier h_k(x) = Σ_j m_kj Φ(w_j·x + b_j), rows of m convex, has values in [0, 1]. Its mean under noise of
    standard deviation σ is g_k(x) = Σ_j m_kj Φ((w_j·x + b_j) / √(1 + σ²‖w_j‖²)): randomised smoothing
    (Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918) without sampling, so that its certificate holds exactly.
    """

    def __init__(self, in_features: int, num_classes: int, hidden: int, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.units = nn.Linear(in_features, hidden)
        self.mixture = nn.Parameter(torch.randn(num_classes, hidden))
        with torch.no_grad():
            self.units.weight.mul_(math.sqrt(in_features) / sigma)

    def scores(self, x: Tensor) -> Tensor:
        """g (N, K) in [0, 1]."""
        spread = torch.sqrt(1 + self.sigma**2 * self.units.weight.square().sum(1))
        return torch.special.ndtr(self.units(x.flatten(1)) / spread) @ self.mixture.softmax(1).T

    def forward(self, x: Tensor) -> Tensor:
        """Φ⁻¹(g) (N, K), each 1/σ-Lipschitz in L2."""
        return torch.special.ndtri(self.scores(x).clamp(QUANTILE_MARGIN, 1 - QUANTILE_MARGIN))
