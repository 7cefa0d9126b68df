"""`fashion-mnist`: 70 000 grey images of clothes, 28×28 pixels, 10 classes, from a copy on this machine.

Xiao, Rasul, Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms" (arXiv 1708.07747), licence MIT. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

from maskaudit.data import idx
from maskaudit.data.interface import Dataset, Split
from maskaudit.data.local import ROOT_VARIABLE, Part, copies, joined, parts_of
from maskaudit.errors import InputError

#: Where Debian's package `dataset-fashion-mnist` puts the files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
#: Where torchvision keeps them below its root.
TORCHVISION = Path("FashionMNIST") / "raw"
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PREFIXES = {"train": "train", "test": "t10k"}
SIDE = 28


def load(split: Split, bounds: tuple[float, float], limit: int | None = None) -> Dataset:
    """The images as (N, 1, 28, 28), raw / 255 scaled to the bounds; N is 10 000 (test), 60 000 (train) or 70 000 (all).

    At most the first `limit`: they follow each other in random order.

    Raises:
        InputError: when no copy is found, naming the package that brings one, or when a file is damaged.
    """
    folder = _folder()
    parts = [_part(folder, PREFIXES[part], limit) for part in parts_of(split)]
    return joined("fashion-mnist", parts, CLASSES, split, bounds, limit)


def _folder() -> Path:
    """The first folder that holds the test labels."""
    top = Path(copies())
    folders = (top, top / "fashion-mnist", top / TORCHVISION, DEBIAN)
    for folder in folders:
        if _file(folder, PREFIXES["test"], "labels-idx1") is not None:
            return folder
    raise InputError(
        f"Fashion-MNIST is not on this machine: looked in {', '.join(map(str, folders))}. Install Debian's package "
        f"dataset-fashion-mnist (apt install dataset-fashion-mnist), or set {ROOT_VARIABLE} to a folder with the four "
        "idx files or with torchvision's copy. Nothing is downloaded."
    )


def _file(folder: Path, prefix: str, kind: str) -> Path | None:
    plain = folder / f"{prefix}-{kind}-ubyte"
    packed = plain.with_name(plain.name + ".gz")
    return next((path for path in (packed, plain) if path.is_file()), None)


def _part(folder: Path, prefix: str, limit: int | None) -> Part:
    """Images uint8 (N, 1, 28, 28) and labels uint8 (N,) of one split, at most the first `limit`."""
    images_path, labels_path = (_file(folder, prefix, kind) for kind in ("images-idx3", "labels-idx1"))
    if images_path is None or labels_path is None:
        raise InputError(f"{folder} holds only a part of Fashion-MNIST: the {prefix} images or labels are missing.")
    images, labels = idx.read(images_path, limit), idx.read(labels_path, limit)
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise InputError(f"{images_path} must hold images of {SIDE}×{SIDE} pixels, got an array {images.shape}.")
    if labels.ndim != 1:
        raise InputError(f"{labels_path} must hold one label per image, got an array {labels.shape}.")
    return images[:, None], labels
