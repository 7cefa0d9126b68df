"""Points as small images for a report."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Pixels of an image that a report shows; larger ones would make it too big.
MAX_SHOWN_PIXELS = 64 * 64 * 3


def showable(shape: Sequence[int]) -> bool:
    """Whether points of this shape are small grey or colour images (C, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3) and math.prod(shape) <= MAX_SHOWN_PIXELS


def pixels(image: Tensor) -> str:
    """An image of values from 0 to 1 as 8-bit pixels in base64."""
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return base64.b64encode(levels.cpu().contiguous().numpy().tobytes()).decode("ascii")
