"""`svhn`: 99 289 house numbers, cropped to 32×32 pixels, 10 classes, from a copy on this machine.

Netzer, Wang, Coates, Bissacco, Wu, Ng 2011, "Reading Digits in Natural Images with Unsupervised
Feature Learning". Read are the original `train_32x32.mat` and `test_32x32.mat`, where torchvision
keeps them too. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskaudit.data.interface import Dataset, Split
from maskaudit.data.local import ROOT_VARIABLE, Part, copies, joined, parts_of
from maskaudit.data.matlab import read_arrays
from maskaudit.errors import InputError

SIDE = 32
CLASSES = 10
#: Where the files may lie below the root.
PLACES = ("", "svhn", "SVHN")


def load(split: Split, bounds: tuple[float, float], limit: int | None = None) -> Dataset:
    """The images as (N, 3, 32, 32), raw / 255 scaled to the bounds; N is 26 032 (test) or 73 257 (train).

    The file's label 10 is the digit 0. At most the first `limit`: they follow each other in random order.

    Raises:
        InputError: when no copy is found, or when a file is damaged.
    """
    parts = [_part(_file(name)) for name in parts_of(split)]
    names = tuple(str(digit) for digit in range(CLASSES))
    return joined("svhn", parts, names, split, bounds, limit)


def _file(split: str) -> Path:
    for place in PLACES:
        path = Path(copies()) / place / f"{split}_32x32.mat"
        if path.is_file():
            return path
    raise InputError(
        f"SVHN is not on this machine: looked for {split}_32x32.mat in {Path(copies())}. Put the cropped digits' files "
        f"there, or set {ROOT_VARIABLE}. Nothing is downloaded."
    )


def _part(path: Path) -> Part:
    """Pixels uint8 (N, 3, 32, 32) and labels int64 (N,)."""
    arrays = read_arrays(path, ("X", "y"))
    pixels, labels = arrays.get("X", np.empty(0)), arrays.get("y", np.empty(0)).reshape(-1)
    fits = pixels.ndim == 4 and pixels.shape[:3] == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
    if not fits or len(labels) != pixels.shape[3] or not np.isin(labels, np.arange(CLASSES + 1)).all():
        raise InputError(
            f"{path} must hold X (32, 32, 3, N) of bytes and y (N, 1) of 0 to {CLASSES}; put the original file there."
        )
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), labels.astype(np.int64) % CLASSES
