"""Arrays by name (`x` and `y`, optionally `x_train` and `y_train`) as a `Dataset`, whatever file they came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskaudit.data import npy
from maskaudit.data.interface import Dataset, Draw, Split, chosen_rows, scale_to_bounds
from maskaudit.errors import InputError, printable

#: Channel counts by which an axis of a 4-D array is recognised: grey, RGB, RGBA.
CHANNELS = (1, 3, 4)
#: Names of the test arrays, in order of preference (the second pair is Keras's habit).
TEST_KEYS = (("x", "y"), ("x_test", "y_test"), ("inputs", "labels"), ("images", "labels"), ("data", "target"))
TRAIN_KEYS = ("x_train", "y_train")
INPUTS = {keys[0] for keys in (*TEST_KEYS, TRAIN_KEYS)}
KNOWN_KEYS = {"num_classes", "class_names", *TRAIN_KEYS, *(key for keys in TEST_KEYS for key in keys)}


def dataset(
    path: Path, arrays: Mapping[str, Any], split: Split, bounds: tuple[float, float], limit: int | None,
    draw: Draw | None, *, how: str,
) -> Dataset:  # fmt: skip
    """The points that arrays hold.

    Args:
        arrays: `x` float (taken as it is) or uint8 (0 … 255 scaled to the bounds), shape (N, C, H, W), (N, D),
            (N, H, W) for grey images, or (N, H, W, C) where only the last axis looks like channels; `y` of any integer
            type, shape (N,). Optional: `x_train`, `y_train` as the train split (without them it is the same points),
            `num_classes` (one integer), `class_names` (strings).
        how: how to write such a file, for messages.

    Raises:
        InputError: an array is lacking or is something else.
    """
    test = next((keys for keys in TEST_KEYS if keys[0] in arrays and keys[1] in arrays), None)
    if test is None:
        held = ", ".join(printable(key, 60) for key in sorted(arrays)[:6]) or "nothing"
        raise InputError(f"{path}: expected the arrays x and y, found {held}; save them with {how}.")
    separate = all(key in arrays for key in TRAIN_KEYS)
    wanted = {"test": [test], "train": [TRAIN_KEYS], "all": [TRAIN_KEYS, test]}[split] if separate else [test]
    notes: list[str] = []
    labels = {key: _labels(path, key, arrays[key]) for _, key in ([test, TRAIN_KEYS] if separate else [test])}
    y = torch.cat([labels[key] for _, key in wanted])
    rows = chosen_rows(y, limit, draw)
    x = _chosen(path, [(key, arrays[key], len(arrays[of])) for key, of in wanted], rows, bounds, notes)
    if not separate:
        notes.append("The file has no x_train and y_train: its train and test splits are the same points.")
    names = _class_names(path, arrays)
    return Dataset(
        name=str(path),
        x=x,
        y=y[rows],
        num_classes=_num_classes(path, arrays, labels.values(), names),
        bounds=bounds,
        class_names=names,
        split=split,
        notes=tuple(dict.fromkeys(notes)),
        draw=draw and draw.of(rows),
        total=len(y) if draw else None,
    )


def _chosen(
    path: Path,
    parts: list[tuple[str, np.ndarray | npy.OnDisk, int]],
    rows: Tensor,
    bounds: tuple[float, float],
    notes: list[str],
) -> Tensor:
    """The inputs at `rows` of all parts (key, array, number of labels) in a row."""
    found, places, start = [], [], 0
    for key, array, labels in parts:
        if array.ndim == 0 or len(array) != labels:
            raise InputError(
                f"{path}: there must be one label per input, got {key} of shape {array.shape} and {labels} labels."
            )
        inside = (rows >= start) & (rows < start + labels)
        found.append(_inputs(path, key, array[(rows[inside] - start).numpy()], bounds, notes))
        places.append(inside.nonzero().squeeze(1))
        start += labels
    x = torch.cat(_same_shape(path, found))
    return x if len(parts) == 1 else x[torch.cat(places).argsort()]


def _inputs(path: Path, key: str, array: np.ndarray, bounds: tuple[float, float], notes: list[str]) -> Tensor:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(
            f"{path}: {key} must be float (inside the bounds) or uint8 (0 … 255), got {array.dtype}; "
            "convert it with .astype before saving."
        )
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, which Dataset refuses
        raw = torch.from_numpy(np.ascontiguousarray(array, dtype=None if array.dtype == np.uint8 else np.float32))
    if raw.dim() == 3:
        raw = raw.unsqueeze(1)
        notes.append(
            "Inputs of shape (N, H, W) are read as grey images (N, 1, H, W), unless the model takes no such axis."
        )
    elif raw.dim() == 4 and raw.shape[1] not in CHANNELS and raw.shape[3] in CHANNELS:
        raw = raw.permute(0, 3, 1, 2).contiguous()
        notes.append("Inputs of shape (N, H, W, C) were transposed to (N, C, H, W).")
    if array.dtype == np.uint8:
        notes.append(f"8-bit inputs 0 … 255 were scaled to the bounds {bounds[0]:g} … {bounds[1]:g}.")
        return scale_to_bounds(raw, 255, bounds)
    return raw


def _labels(path: Path, key: str, array: np.ndarray) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = "; one-hot labels become class numbers with .argmax(axis=1)" if array.ndim == 2 else ""
        raise InputError(f"{path}: {key} must have shape (N,), one class number per input, got {array.shape}{hint}.")
    if array.dtype.kind not in "iufb":
        raise InputError(f"{path}: {key} must be class numbers, got {array.dtype}; convert with .astype(int).")
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        strange = array[~((array == np.round(array)) & (np.abs(array) < 2**53))]
        if len(strange):
            raise InputError(f"{path}: {key} must be class numbers, found {float(strange[0]):g}.")
    return torch.from_numpy(array.astype(np.int64))


def _same_shape(path: Path, parts: list[Tensor]) -> list[Tensor]:
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = " and ".join(str(tuple(part.shape)) for part in parts)
        raise InputError(f"{path}: x and x_train must hold points of one shape, got {shapes}.")
    return parts


def _class_names(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
    if "class_names" not in arrays:
        return None
    names = arrays["class_names"]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise InputError(f"{path}: class_names must be a list of strings, got {names.dtype} of shape {names.shape}.")
    try:
        return tuple(names.tolist())
    except (ValueError, SystemError) as error:  # numpy does not look at what a file calls characters
        raise InputError(f"{path}: class_names holds characters that do not exist.") from error


def _num_classes(
    path: Path, arrays: Mapping[str, np.ndarray], labels: Iterable[Tensor], names: tuple[str, ...] | None
) -> int:
    if "num_classes" in arrays:
        declared = arrays["num_classes"]
        if declared.dtype.kind not in "iu" or declared.size != 1:
            raise InputError(
                f"{path}: num_classes must be one integer, got {declared.dtype} of shape {declared.shape}."
            )
        return int(declared.reshape(-1)[0])
    if names is not None:
        return len(names)
    return max((int(array.max()) + 1 for array in labels if len(array)), default=0)
