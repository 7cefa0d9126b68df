"""Published sets from a copy on this machine: the folder that holds the copies, and their parts put together."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from maskaudit.data.interface import Dataset, Split, scale_to_bounds

#: Environment variable that names the folder with copies of published sets, torchvision's among them; `data` if unset.
ROOT_VARIABLE = "MASKAUDIT_DATA"
#: Pixels uint8 (N, C, H, W) and whole labels (N,).
Part = tuple[np.ndarray, np.ndarray]


def copies() -> str:
    """The folder that holds the copies."""
    return os.environ.get(ROOT_VARIABLE, "data")


def parts_of(split: Split) -> tuple[str, ...]:
    """The parts that a split consists of."""
    return ("train", "test") if split == "all" else (split,)


def joined(
    name: str, parts: Sequence[Part], classes: tuple[str, ...], split: Split, bounds: tuple[float, float],
    limit: int | None,
) -> Dataset:  # fmt: skip
    """The first `limit` points of all parts in a row, pixels of 0 to 255 scaled to the bounds."""
    pixels = torch.from_numpy(np.concatenate([pixels for pixels, _ in parts])[:limit])
    labels = torch.from_numpy(np.concatenate([labels for _, labels in parts])[:limit].astype(np.int64))
    return Dataset(name, scale_to_bounds(pixels, 255, bounds), labels, len(classes), bounds, classes, split)
