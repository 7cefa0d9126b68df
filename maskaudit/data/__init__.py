"""Where points come from: one file per kind of source, all returning a `Dataset`.

A further kind is one file with a loader and one line in `PREFIXES`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from maskaudit.data import cifar10, digits, fashion_mnist, folder, huggingface, npz, python, svhn, torchvision
from maskaudit.data.interface import Dataset, Draw, Split, check_bounds, check_split
from maskaudit.errors import InputError

__all__ = ["PREFIXES", "Dataset", "Draw", "Split", "load_data"]

#: Loads what follows the prefix: (name, split, bounds, limit, draw) → Dataset, of which it may hold no more than is
#: asked for.
Loader = Callable[[str, Split, tuple[float, float], int | None, Draw | None], Dataset]

DEFAULT_BOUNDS = (0.0, 1.0)


#: Sources with a name of their own: (split, bounds, limit) → Dataset; files may name them (`loading.claims`).
NAMED: dict[str, Callable[[Split, tuple[float, float], int | None], Dataset]] = {
    "digits": digits.load,
    "fashion-mnist": fashion_mnist.load,
    "cifar-10": cifar10.load,
    "svhn": svhn.load,
}

PREFIXES: dict[str, Loader] = {
    "torchvision": torchvision.load,
    "hf": huggingface.load,
    "py": python.load,
}


def load_data(
    source: str, *, split: Split = "test", bounds: tuple[float, float] | None = None, limit: int | None = None,
    draw: Draw | None = None,
) -> Dataset:  # fmt: skip
    """Read labelled points.

    Stored pixels (uint8 arrays, image files, digits) are mapped linearly from their full range
    onto the bounds; float arrays are taken as they are and must lie inside them.

    Args:
        source: `digits`, `fashion-mnist`, `cifar-10`, `svhn`, an .npz file, a folder with one sub-folder per class,
            `torchvision:NAME`, `hf:ID` or `py:pkg.mod:callable`.
        split: `"test"`, `"train"` or `"all"`. A source without a train part gives the same points for each.
        bounds: smallest and largest admissible value; (0, 1) if not given.
        limit: most points to load, chosen as `Dataset.some` does; no more are unpacked than are needed.
        draw: the points that will be sampled; others are not unpacked, where the source lets one choose.

    Raises:
        UsageError: for an unknown kind of source, split or bounds.
        InputError: for data that are missing, unreadable or do not fit together.
    """
    check_split(split)
    limits = (float(bounds[0]), float(bounds[1])) if bounds is not None else DEFAULT_BOUNDS
    check_bounds(limits)
    data = _loaded(source, split, limits, limit, draw)
    return data if limit is None else data.some(limit)


def _loaded(source: str, split: Split, limits: tuple[float, float], limit: int | None, draw: Draw | None) -> Dataset:
    if source in NAMED:
        return NAMED[source](split, limits, limit)
    prefix, colon, name = source.partition(":")
    if colon and prefix in PREFIXES:
        return PREFIXES[prefix](name, split, limits, limit, draw)
    path = Path(source)
    try:
        if path.is_dir():
            return folder.load(path, split, limits, limit, draw)
        if path.is_file():
            return npz.load(path, split, limits, limit, draw)
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"The data source {source!r} cannot be opened: {error}.") from error
    if exists:
        raise InputError(f"The data source {source!r} is neither a file nor a folder.")
    raise InputError(
        f"There is no data source {source!r}; give digits, fashion-mnist, cifar-10, svhn, an .npz file with arrays x "
        "and y, a folder with one sub-folder per class, torchvision:NAME, hf:ID or py:pkg.mod:callable."
    )
