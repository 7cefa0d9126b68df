"""Wrappers that look unusual and hide nothing: controls for probes and trace, which look inside models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskaudit.sums import column
from maskaudit.zoo.masks.base import Mask, unmask


class Checkpointed(Mask):
    """Gradient checkpointing: activations are computed again in the backward pass (Chen et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return checkpoint(self.network, x, use_reentrant=False)


class ChannelsLast(Mask):
    """Images laid out with their channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.network(x.contiguous(memory_format=torch.channels_last))


class HalfPrecision(Mask):
    """Matrix products in bfloat16 (Micikevicius et al. 2018, mixed precision)."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            scores: Tensor = self.network(x)
        return scores.float()


class PerPoint(Mask):
    """One point at a time, under `torch.vmap`: every op of the network sees a point without its batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return torch.vmap(lambda point: self.network(point[None])[0])(x)

    def unmasked(self) -> nn.Module:
        """The same for the network without its masks."""
        return PerPoint(unmask(self.network))


class SteadyBrightness(Mask):
    """Every image brought to one brightness, which is measured off the graph: a cut that hides nothing."""

    def __init__(self, network: nn.Module, brightness: float = 0.3) -> None:
        super().__init__(network)
        self.brightness = brightness

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        measured = column(x.detach().flatten(1).mean(dim=1), x)
        return self.network(x - measured + self.brightness)

    def unmasked(self) -> nn.Module:
        """The same for the network without its masks."""
        return SteadyBrightness(unmask(self.network), self.brightness)
