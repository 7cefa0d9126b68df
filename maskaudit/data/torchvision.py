"""`torchvision:NAME`: a data set that torchvision knows and that is already on this machine."""

from __future__ import annotations

import inspect
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np
import torch

from maskaudit.data.interface import Dataset, Draw, Split, chosen_rows, entries, scale_to_bounds
from maskaudit.data.local import ROOT_VARIABLE, copies, parts_of
from maskaudit.errors import InputError, UsageError
from maskaudit.loading.vision import ready_torchvision


def load(
    name: str, split: Split, bounds: tuple[float, float], limit: int | None = None, draw: Draw | None = None
) -> Dataset:
    """Images (N, C, H, W) of `torchvision.datasets.NAME`, uint8 pixels scaled to the bounds; never downloads.

    Where the data set tells its labels by themselves (`targets`), only the images that are wanted are decoded.
    """
    kind = _dataset_class(_import(), name)
    parts = [_open(kind, name, part) for part in parts_of(split)]
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    known = [label for part in parts for label in _targets(part)]
    choose = bool(known) and all(len(_targets(part)) == len(part) for part in parts)
    rows = chosen_rows(torch.tensor(known), limit, draw) if choose else None
    for image, label in chain(*parts) if rows is None else entries(parts, rows.tolist()):
        arrays.append(np.asarray(image))
        labels.append(label)
    source = f"torchvision:{name}"
    shapes = {array.shape for array in arrays}
    fits = len(shapes) == 1 and all(array.dtype == np.uint8 and array.ndim in (2, 3) for array in arrays)
    if not fits or not all(isinstance(label, int) for label in labels):
        raise InputError(
            f"{source} does not hold 8-bit images of one size with one integer label each; "
            "export what you need to an .npz file with arrays x and y."
        )
    pixels = torch.from_numpy(np.stack(arrays))
    pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    names = getattr(parts[0], "classes", None)
    y = torch.tensor(labels, dtype=torch.int64)
    return Dataset(
        name=source,
        x=scale_to_bounds(pixels, 255, bounds),
        y=y,
        num_classes=len(names) if names else max([*known, *labels]) + 1,
        bounds=bounds,
        class_names=tuple(str(item) for item in names) if names else None,
        split=split,
        draw=None if rows is None else draw and draw.of(rows),
        total=len(known) if choose and draw else None,
    )


def _targets(part: Any) -> list[int]:
    """The labels of a part, where it tells them without decoding its images; else nothing."""
    found = getattr(part, "targets", None)
    found = found.tolist() if isinstance(found, (np.ndarray, torch.Tensor)) else found
    return found if isinstance(found, list) and all(type(label) is int for label in found) else []


def _import() -> ModuleType:
    try:
        ready_torchvision()
        from torchvision import datasets
    except ImportError as error:
        raise InputError(
            "torchvision: data need the package torchvision; install it, or export the data to an .npz file."
        ) from error
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise InputError(
            f"torchvision is installed but cannot be imported ({type(error).__name__}: {error}); "
            "install the version that belongs to your torch, or export the data to an .npz file."
        ) from error
    return datasets


def _dataset_class(datasets: ModuleType, name: str) -> Any:
    kind = getattr(datasets, name, None) if name.isidentifier() else None
    if not isinstance(kind, type) or name.startswith("_"):
        raise UsageError(f"torchvision has no data set {name!r}; the names are case-sensitive, for example CIFAR10.")
    return kind


def _open(kind: Any, name: str, part: str) -> Any:
    accepted = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {}
    if "train" in accepted:
        arguments["train"] = part == "train"
    elif "split" in accepted:
        arguments["split"] = part
    if "download" in accepted:
        arguments["download"] = False
    try:
        return kind(copies(), **arguments)
    except Exception as error:  # each data set reports missing files in its own way
        raise InputError(
            f"torchvision:{name} cannot be read from the folder {copies()!r} ({type(error).__name__}: {error}); put "
            f"the data there or set {ROOT_VARIABLE}, or export them to an .npz file. Nothing is downloaded."
        ) from error
