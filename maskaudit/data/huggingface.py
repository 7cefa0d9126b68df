"""`hf:ID`: a data set of the Hugging Face hub, read with the package `datasets`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from maskaudit.data.interface import Dataset, Draw, Split, chosen_rows, entries, scale_to_bounds
from maskaudit.errors import InputError
from maskaudit.loading import network

#: Names of a held-out part, in order of preference.
HELD_OUT = ("test", "validation", "valid")
#: Kinds of column (class names of `datasets.features`) that hold inputs and labels.
IMAGE, LABEL = "Image", "ClassLabel"


def load(
    name: str, split: Split, bounds: tuple[float, float], limit: int | None = None, draw: Draw | None = None
) -> Dataset:
    """Images (N, C, H, W) of the set's one Image column with its one ClassLabel column, uint8 scaled to the bounds.

    Raises:
        InputError: when `datasets` or the set is missing, or it does not hold labelled images of one size.
    """
    source = f"hf:{name}"
    parts = _parts(source, name, split)
    features = parts[0].features
    image, label = _column(source, features, IMAGE), _column(source, features, LABEL)
    y = torch.tensor([int(row) for part in parts for row in part[label]], dtype=torch.int64)
    rows = chosen_rows(y, limit, draw)
    every = limit is None and draw is None
    all_images = (one for part in parts for one in part[image])
    images = all_images if every else (entry[image] for entry in entries(parts, rows.tolist()))
    pixels = _pixels(source, [np.asarray(one) for one in images])
    names = tuple(str(item) for item in features[label].names)
    return Dataset(
        name=source,
        x=scale_to_bounds(torch.from_numpy(pixels), 255, bounds),
        y=y[rows],
        num_classes=len(names),
        bounds=bounds,
        class_names=names,
        split=split,
        draw=draw and draw.of(rows),
        total=len(y) if draw else None,
    )


def _parts(source: str, name: str, split: Split) -> list[Any]:
    try:
        package = importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(
            f"{source} needs the package datasets; install it (pip install datasets), or export the data to an .npz "
            "file with arrays x and y."
        ) from error
    advice = "; check the name, and that the data are here or can be downloaded"
    with network.explained("hf", f"{source} is not available", advice):
        every = package.load_dataset(name)
    held_out = next((part for part in HELD_OUT if part in every), None)
    wanted = {"train": ("train",), "test": (held_out,), "all": ("train", held_out)}[split]
    if any(part not in every for part in wanted):
        raise InputError(f"{source} has no {split} split; it has {', '.join(map(str, every))}.")
    return [every[part] for part in wanted]


def _column(source: str, features: Mapping[str, Any], kind: str) -> str:
    found = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        raise InputError(
            f"{source} must have one column of the kind {kind}, it has {len(found)} among {', '.join(features)}; "
            "export what you need to an .npz file with arrays x and y."
        )
    return found[0]


def _pixels(source: str, images: list[np.ndarray]) -> np.ndarray:
    """All images as uint8 (N, C, H, W)."""
    shapes = sorted({image.shape for image in images})
    if len(shapes) != 1 or len(shapes[0]) not in (2, 3) or any(image.dtype != np.uint8 for image in images):
        raise InputError(
            f"{source} must hold 8-bit images of one size, got {', '.join(map(str, shapes[:4])) or 'none'}; "
            "export what you need to an .npz file with arrays x and y."
        )
    stack = np.stack(images)
    return stack[:, None] if stack.ndim == 3 else np.ascontiguousarray(stack.transpose(0, 3, 1, 2))
