"""What an accelerator makes expensive: asking it for a value.

The host runs ahead of an accelerator and only fills its queue. Code that looks at a value, by `bool`, `int`,
`nonzero` or a mask as an index, waits until the queue is empty; done in every step of an attack, that costs
more than the steps. On the CPU a look is nearly free and often saves work. These functions let both run the
same code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maskaudit.rng import PointRNG


def asking_is_free(device: torch.device) -> bool:
    """Whether looking at a value on this device makes nothing wait."""
    return device.type == "cpu"


def perhaps(mask: Tensor) -> bool:
    """False where no entry of a mask (any shape) is true and that is free to know; else true."""
    return not asking_is_free(mask.device) or bool(mask.any())


def moved(value: Any, device: torch.device) -> Any:
    """A tensor or the random numbers of points on a device; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, PointRNG):
        return replace(value, points=value.points.to(device))
    return value
