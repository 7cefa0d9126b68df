"""Wrappers that look unusual and hide nothing: controls for whoever looks inside models."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from maskaudit.zoo.masks.base import Mask


class Checkpointed(Mask):
    """Gradient checkpointing: activations are computed again in the backward pass (Chen et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        scores: Tensor = checkpoint(self.network, x, use_reentrant=False)
        return scores


class ChannelsLast(Mask):
    """Images laid out with their channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        scores: Tensor = self.network(x.contiguous(memory_format=torch.channels_last))
        return scores


class HalfPrecision(Mask):
    """Matrix products in bfloat16 (Micikevicius et al. 2018, mixed precision)."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            scores: Tensor = self.network(x)
        return scores.float()
