"""Where points come from: one file per kind of source, all returning a `Dataset`.

A further kind is one file with a loader and one line in `PREFIXES`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from maskaudit.data import digits, folder, npz, torchvision
from maskaudit.data.interface import Dataset, Split, check_bounds, check_split
from maskaudit.errors import InputError, UsageError

__all__ = ["PREFIXES", "Dataset", "Split", "load_data"]

#: Loads what follows the prefix: (name, split, bounds) → Dataset.
Loader = Callable[[str, Split, tuple[float, float]], Dataset]

DEFAULT_BOUNDS = (0.0, 1.0)


def _not_supported(prefix: str) -> Loader:
    def refuse(name: str, split: Split, bounds: tuple[float, float]) -> Dataset:
        raise UsageError(
            f"Data sources of the kind {prefix}: are not supported by this version; "
            f"export {name or 'the data'} to an .npz file with arrays x and y, and give --data FILE.npz."
        )

    return refuse


PREFIXES: dict[str, Loader] = {
    "torchvision": torchvision.load,
    "hf": _not_supported("hf"),
    "py": _not_supported("py"),
}


def load_data(source: str, *, split: Split = "test", bounds: tuple[float, float] | None = None) -> Dataset:
    """Read labelled points.

    Stored pixels (uint8 arrays, image files, digits) are mapped linearly from their full range
    onto the bounds; float arrays are taken as they are and must lie inside them.

    Args:
        source: `digits`, an .npz file, a folder with one sub-folder per class, or `torchvision:NAME`.
        split: `"test"`, `"train"` or `"all"`. A source without a train part gives the same points for each.
        bounds: smallest and largest admissible value; (0, 1) if not given.

    Raises:
        UsageError: for an unknown kind of source, split or bounds.
        InputError: for data that are missing, unreadable or do not fit together.
    """
    check_split(split)
    limits = (float(bounds[0]), float(bounds[1])) if bounds is not None else DEFAULT_BOUNDS
    check_bounds(limits)
    if source == "digits":
        return digits.load(split, limits)
    prefix, colon, name = source.partition(":")
    if colon and prefix in PREFIXES:
        return PREFIXES[prefix](name, split, limits)
    path = Path(source)
    try:
        if path.is_dir():
            return folder.load(path, split, limits)
        if path.is_file():
            return npz.load(path, split, limits)
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"The data source {source!r} cannot be opened: {error}.") from error
    if exists:
        raise InputError(f"The data source {source!r} is neither a file nor a folder.")
    raise InputError(
        f"There is no data source {source!r}; give digits, an .npz file with arrays x and y, "
        "a folder with one sub-folder per class, or torchvision:NAME."
    )
