"""The embedded data: 1797 handwritten digits, 8×8 pixels, 10 classes.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0; the copy that
scikit-learn's `load_digits` ships (the repository's test part). Changed only in storage:
`digits.npz` holds `pixels` uint8 (1797, 8, 8) with values 0 … 16, `labels` uint8 (1797,),
and `train` int16 (1200,), the sorted point numbers of a fixed train split that was drawn
once, stratified by class (seed 0); the other 597 points are the test split.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch

from maskaudit.data.interface import Dataset, Split, scale_to_bounds

#: Largest pixel value: a count of set bits in a 4×4 block.
FULL = 16


def load(split: Split, bounds: tuple[float, float], limit: int | None = None) -> Dataset:
    """The digits as (N, 1, 8, 8), raw / 16 scaled to the bounds; N is 597 (test), 1200 (train) or 1797 (all)."""
    file = resources.files("maskaudit.data").joinpath("digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        pixels = torch.from_numpy(arrays["pixels"]).unsqueeze(1)
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
        train = torch.from_numpy(arrays["train"].astype(np.int64))
    chosen = torch.ones(len(labels), dtype=torch.bool)
    if split != "all":
        in_train = torch.zeros(len(labels), dtype=torch.bool)
        in_train[train] = True
        chosen = in_train if split == "train" else ~in_train
    return Dataset(
        name="digits",
        x=scale_to_bounds(pixels[chosen], FULL, bounds),
        y=labels[chosen],
        num_classes=10,
        bounds=bounds,
        class_names=tuple(str(digit) for digit in range(10)),
        split=split,
    )
