"""Where points come from: one file per kind of source, all returning a `Dataset`.

A further kind is one file with a loader and one line in `PREFIXES`.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable
from pathlib import Path

from maskaudit.data import (
    cifar10,
    digits,
    fashion_mnist,
    folder,
    huggingface,
    npz,
    pairs,
    python,
    svhn,
    table,
    tensors,
    torchvision,
    webdataset,
)
from maskaudit.data.interface import Dataset, Draw, Split, check_bounds, check_split
from maskaudit.errors import InputError, UsageError
from maskaudit.files import is_file
from maskaudit.loading.archive import TAR_BLOCK, is_tar
from maskaudit.loading.sniff import LEGACY_START

__all__ = ["PREFIXES", "Dataset", "Draw", "Split", "load_data"]

#: Loads what follows the prefix: (name, split, bounds, limit, draw) → Dataset, of which it may hold no more than is
#: asked for.
Loader = Callable[[str, Split, tuple[float, float], int | None, Draw | None], Dataset]

DEFAULT_BOUNDS = (0.0, 1.0)


#: Readers of the data sets of `BUILT_IN_DATA`: (split, bounds, limit) → Dataset.
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

#: Readers of files, and of tables with a column of labels, by what `_file_kind` says.
FILES: dict[str, Callable[[Path, Split, tuple[float, float], int | None, Draw | None], Dataset]] = {
    "npz": npz.load,
    "npy": pairs.load,
    "tensors": tensors.load,
    "tar": webdataset.load,
}
TABLES: dict[str, Callable[[Path, Split, tuple[float, float], int | None, Draw | None, str | None], Dataset]] = {
    "csv": table.load_csv,
    "parquet": table.load_parquet,
}
#: Endings of text tables: a text may be anything.
SUFFIXES = (".csv", ".tsv", ".txt")


def load_data(
    source: str, *, split: Split = "test", bounds: tuple[float, float] | None = None, limit: int | None = None,
    draw: Draw | None = None, target: str | None = None,
) -> Dataset:  # fmt: skip
    """Read labelled points.

    Stored pixels (uint8 arrays, image files, digits) are mapped linearly from their full range
    onto the bounds; float arrays are taken as they are and must lie inside them.

    Args:
        source: a name of `NAMED` such as `digits`, a file (.npz, .npy with labels beside it, tensors of torch.save or
            safetensors, a table in CSV or Parquet, a tar archive of images), `x.npy,y.npy`, a folder with one
            sub-folder per class, `torchvision:NAME`, `hf:ID` or `py:pkg.mod:callable`.
        split: `"test"`, `"train"` or `"all"`. A source without a train part gives the same points for each.
        bounds: smallest and largest admissible value; (0, 1) if not given.
        limit: most points to load, chosen as `Dataset.some` does; no more are unpacked than are needed.
        draw: the points that will be sampled; others are not unpacked, where the source lets one choose.
        target: column of a table that holds the labels.

    Raises:
        UsageError: for an unknown kind of source, split or bounds.
        InputError: for data that are missing, unreadable or do not fit together.
    """
    check_split(split)
    limits = (float(bounds[0]), float(bounds[1])) if bounds is not None else DEFAULT_BOUNDS
    check_bounds(limits)
    data = _loaded(source, split, limits, limit, draw, target)
    return data if limit is None else data.some(limit)


def _loaded(
    source: str, split: Split, limits: tuple[float, float], limit: int | None, draw: Draw | None, target: str | None
) -> Dataset:
    path = Path(source)
    kind = _file_kind(path) if is_file(path) else ""
    if kind in TABLES:
        return TABLES[kind](path, split, limits, limit, draw, target)
    if target is not None:
        raise UsageError(f"--target names a column of a table, and {source} is none; leave it out.")
    if source in NAMED:
        return NAMED[source](split, limits, limit)
    prefix, colon, name = source.partition(":")
    if colon and prefix in PREFIXES:
        return PREFIXES[prefix](name, split, limits, limit, draw)
    try:
        if kind:
            return FILES[kind](path, split, limits, limit, draw)
        if pairs.is_pair(source):
            return pairs.load(source, split, limits, limit, draw)
        if path.is_dir():
            return folder.load(path, split, limits, limit, draw)
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"The data source {source!r} cannot be opened: {error}.") from error
    if exists:
        raise InputError(f"The data source {source!r} is neither a file nor a folder.")
    raise InputError(
        f"There is no data source {source!r}; give {', '.join(NAMED)}, an .npz file with arrays x and y, a folder with "
        "one sub-folder per class, torchvision:NAME, hf:ID, py:pkg.mod:callable, or another file that docs/data.md "
        "lists."
    )


def _file_kind(path: Path) -> str:
    """What the start of a file says: a key of `FILES` or `TABLES`; npz for what is nothing else.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(TAR_BLOCK)
    except OSError as error:
        raise InputError(f"The data source {str(path)!r} cannot be opened: {error}.") from error
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"PAR1"):
        return "parquet"
    if is_tar(head):
        return "tar"
    if (head[8:9] == b"{" and head[4:8] == bytes(4)) or head.startswith(LEGACY_START):
        return "tensors"
    if head.startswith(b"PK"):
        return "tensors" if _is_torch(path) else "npz"
    texts = path.suffix.lower() in SUFFIXES and b"\0" not in head
    return "csv" if texts and head else "npz"


def _is_torch(path: Path) -> bool:
    """Whether a zip was written by torch.save."""
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:  # damage is told by the reader
        return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    return False
