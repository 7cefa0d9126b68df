"""Augmentation: pad, crop at random, flip; each draw belongs to (seed, epoch, point)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskaudit.rng import PointRNG
from maskaudit.settings import Augment

#: Sides per pixel of padding: 4 pixels at 32×32 (He et al. 2016; Sinha et al. 2018, supplement), 1 at 8×8.
SIDE_PER_PIXEL = 8


def augmented(x: Tensor, how: Augment, rng: PointRNG, *, step: int, fill: float) -> Tensor:
    """Images (N, C, H, W) padded by an eighth of the side with `fill` and cropped back, perhaps flipped sideways.

    Vectors and images narrower than 8 pixels are returned as they are.
    """
    pad = min(x.shape[2:]) // SIDE_PER_PIXEL if x.dim() == 4 else 0
    if how == "none" or pad == 0:
        return x
    n, _, height, width = x.shape
    offsets = rng.fork("crop").integers(2 * pad + 1, (2,), step=step)
    rows = offsets[:, 0, None] + torch.arange(height)
    columns = offsets[:, 1, None] + torch.arange(width)
    if how == "crop-flip":
        flip = rng.fork("flip").coins((1,), step=step)
        columns = torch.where(flip, columns.flip(1), columns)
    padded = F.pad(x, (pad,) * 4, value=fill)
    points = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[points, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
