"""Counterexamples hidden from every search that follows slopes or chance: known, because they were planted.

After SoundnessBench (Xu et al. 2024, arXiv 2412.03154), which trains such examples into networks to test
verifiers. One is built, `HiddenCorner`; one is trained (`maskaudit.zoo.recipes_hidden.TrappedCorner`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.threat import ThreatModel
from maskaudit.zoo.masks.base import Mask, unmask
from maskaudit.zoo.recipes_hidden import planted_corner
from maskaudit.zoo.recipes_masking import hidden_pattern

#: Alignment with the checkerboard at which the trap opens, in units of v·x. On the digits (Linf, ε = 0.2) clean
#: points and PGD examples of a PGD-trained network reach 2.2, the planted corners 7.3 … 12 (98 % of them).
THRESHOLD = 6.0
#: Slope of the trap: the logits have changed sign 0.25 above the threshold.
GAIN = 4.0
#: Slope of the twin's trap below the threshold.
LEAK = 0.05


class HiddenCorner(Mask):
    """Logits that change sign near one corner of the ball, x + ε · checkerboard, and are untouched elsewhere.

    A ReLU that no clean point fires detects the corner: its gradient is exactly zero wherever
    a search for slopes goes, and a random corner opens it about once in ten thousand draws.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        scores: Tensor = self.network(x)
        return scores * (1.0 - GAIN * F.relu(_alignment(x) - THRESHOLD))

    def unmasked(self) -> nn.Module:
        """The same with a trap that leaks and a network that keeps still: every slope leads to the corner."""
        return OpenCorner(unmask(self.network))


class OpenCorner(nn.Module):
    """`HiddenCorner` as those see it who know where to look."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        scores: Tensor = self.network(x).detach()
        return scores * (1.0 - GAIN * F.leaky_relu(_alignment(x) - THRESHOLD, LEAK))


def _alignment(x: Tensor) -> Tensor:
    return (x * checkerboard(x)).flatten(1).sum(1, keepdim=True)


def checkerboard(x: Tensor) -> Tensor:
    """±1 alternating along both axes of images (N, C, H, W), shape (H, W)."""
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape[2:])
    return (2.0 * ((rows[:, None] + columns[None, :]) % 2) - 1.0).to(x)


def hidden_corner(x: Tensor, threat: ThreatModel) -> Tensor:
    """The planted counterexamples (N, C, H, W) of clean points `x`."""
    return threat.project(x + threat.eps * checkerboard(x), x)


def trapped_corner(x: Tensor, threat: ThreatModel) -> Tensor:
    """The counterexamples (N, C, H, W) of clean points `x` that `TrappedCorner` trains into a network of seed 0."""
    return planted_corner(x, threat, hidden_pattern(tuple(x.shape[1:]), 0).to(x))
