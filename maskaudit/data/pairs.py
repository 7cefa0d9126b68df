"""Two `.npy` files, inputs and labels: `x.npy,y.npy`, or `x.npy` with its labels beside it."""

from __future__ import annotations

import re
from pathlib import Path

from maskaudit.data import npy
from maskaudit.data.arrays import dataset
from maskaudit.data.interface import Dataset, Draw, Split
from maskaudit.errors import InputError
from maskaudit.files import is_file

#: What the labels of inputs of some name are called; letters keep their case.
LABELS = {"x": ("y",), "data": ("labels", "targets"), "inputs": ("labels", "targets"), "images": ("labels", "targets"),
          "features": ("labels", "targets")}  # fmt: skip


def is_pair(source: str) -> bool:
    """Whether a source has the form `x.npy,y.npy`."""
    return source.count(",") == 1 and all(part.strip().endswith(".npy") for part in source.split(","))


def load(
    source: str | Path, split: Split, bounds: tuple[float, float], limit: int | None = None, draw: Draw | None = None
) -> Dataset:
    """Inputs and labels as `maskaudit.data.arrays.dataset` has them; each file is read as one in an .npz is.

    Raises:
        InputError: for a file that is missing, damaged or holds something else, or inputs without labels beside them.
    """
    first, second = _both(source)
    arrays = {"x": npy.read_file(first), "y": npy.read_file(second)}
    return dataset(Path(source), arrays, split, bounds, limit, draw, how="numpy.save")


def _both(source: str | Path) -> tuple[Path, Path]:
    if isinstance(source, str):
        first, second = (Path(part.strip()) for part in source.split(","))
        for path in (first, second):
            if not is_file(path):
                raise InputError(f"There is no file {str(path)!r}; give inputs and labels as x.npy,y.npy.")
        return first, second
    names = _partners(source.stem)
    found = next((path for name in names if is_file(path := source.with_name(name + source.suffix))), None)
    if found is None:
        wanted = (
            f"no {names[0]}{source.suffix} lies" if names else "its name does not tell that of its labels, and none lie"
        )
        raise InputError(
            f"{source} is a single array, and {wanted} beside it; give inputs and labels as x.npy,y.npy, or save "
            "them with numpy.savez(x=…, y=…)."
        )
    return source, found


def _partners(stem: str) -> list[str]:
    """Names of the labels: the word for inputs in a file's name replaced by one for labels."""
    found = []
    for match in re.finditer(r"(?<![^_\W])[A-Za-z]+(?![^_\W])", stem):
        for word in LABELS.get(match[0].lower(), ()):
            cased = word if match[0].islower() or len(word) == 1 else word.capitalize()
            found += [stem[: match.start()] + form + stem[match.end() :] for form in dict.fromkeys((cased, word))]
    return found
