"""The tasks of multi-task training on images: what the network sees, what it has to say, and how far off it is.

Sinha et al. 2018 (arXiv 1806.08028), supplement: the input is grey and noisy; tasks are classification, colours, edges
and the image without noise. Edges are those of Canny 1986, "A Computational Approach to Edge Detection", sections IV
and V, with σ = 1, on the clean image.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.networks.layers import BasicBlock, luma
from maskaudit.rng import PointRNG

#: Share of pixels that salt or pepper hits, and standard deviation of the multiplicative (speckle) noise.
SALT_AND_PEPPER = 0.04
SPECKLE = 0.1
#: Canny's smoothing in pixels, and thresholds in units of the image's largest slope.
SIGMA = 1.0
WEAK, STRONG = 0.1, 0.2
#: Smallest largest slope: below it there is rounding only.
FAINTEST = 1e-3
#: Rounds in which weak edges grow from strong ones: no edge here is longer.
GROWTH = 32


def noisy_grey(x: Tensor, rng: PointRNG, *, step: int) -> Tensor:
    """Images (N, C, H, W) in [0, 1] as grey with salt, pepper and speckle, the same in all C channels."""
    grey = luma(x)
    shape = tuple(grey.shape[1:])
    hit, kind = (rng.fork(name).uniform(shape, step=step).to(x) for name in ("hit", "kind"))
    peppered = torch.where(hit < SALT_AND_PEPPER, (kind < 0.5).to(grey.dtype), grey)
    speckle = rng.fork("speckle").normal(shape, step=step).to(x)
    return (peppered * (1 + SPECKLE * speckle)).clamp(0, 1).expand_as(x).contiguous()


def canny(grey: Tensor) -> Tensor:
    """Edges (N, 1, H, W) as 0 or 1 of grey images: smoothed slopes, thinned across, weak ones kept next to strong."""
    reach = math.ceil(3 * SIGMA)
    bell = torch.exp(-torch.arange(-reach, reach + 1, device=grey.device, dtype=grey.dtype).square() / (2 * SIGMA**2))
    bell = bell / bell.sum()
    smooth = F.conv2d(F.pad(grey, (reach, reach, 0, 0), mode="replicate"), bell.view(1, 1, 1, -1))
    smooth = F.conv2d(F.pad(smooth, (0, 0, reach, reach), mode="replicate"), bell.view(1, 1, -1, 1))
    sobel = grey.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([sobel, sobel.T]).unsqueeze(1)
    slopes = F.conv2d(F.pad(smooth, (1,) * 4, mode="replicate"), kernels)
    size = slopes.square().sum(1, keepdim=True).sqrt()
    thin = size * _is_ridge(size, slopes)
    largest = size.flatten(1).amax(1).clamp_min(FAINTEST).view(-1, 1, 1, 1)
    weak, edges = (thin >= WEAK * largest).to(grey.dtype), (thin >= STRONG * largest).to(grey.dtype)
    for _ in range(GROWTH):
        edges = F.max_pool2d(edges, 3, stride=1, padding=1) * weak
    return edges


def _is_ridge(size: Tensor, slopes: Tensor) -> Tensor:
    """Whether a pixel's slope is the largest along its own direction, rounded to 45°; (N, 1, H, W)."""
    padded = F.pad(size, (1,) * 4)
    height, width = size.shape[2:]
    eighth = torch.round(torch.atan2(slopes[:, 1:], slopes[:, :1]) / (math.pi / 4)) % 4
    ridge = torch.zeros_like(size)
    for number, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[:, :, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        behind = padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
        ridge = torch.where(eighth == number, ((size > ahead) & (size >= behind)).to(size.dtype), ridge)
    return ridge


class ImageDecoder(nn.Module):
    """Shared features (N, F, h, w) → an image (N, channels, H, W): at least doubled and residual, three times."""

    def __init__(self, features: int, channels: int, size: tuple[int, int], stages: int = 3) -> None:
        super().__init__()
        self.size = size
        widths = [features, *(max(features // 2**stage, 8) for stage in range(1, stages + 1))]
        self.blocks = nn.ModuleList(BasicBlock(a, b) for a, b in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Images (N, channels, H, W)."""
        for block in self.blocks:
            height, width = (min(2 * now, most) for now, most in zip(features.shape[2:], self.size, strict=True))
            features = block(F.interpolate(features, size=(height, width), mode="nearest"))
        return F.interpolate(self.last(features), size=self.size, mode="nearest")


def targets(x: Tensor) -> dict[str, Tensor]:
    """What each task but classification has to answer for clean images (N, C, H, W)."""
    grey = luma(x)
    colours = {"colour": x} if x.shape[1] == 3 else {}
    return {**colours, "edges": canny(grey), "denoised": grey}
