"""`.npz` files: arrays `x` and `y`, optionally `x_train` and `y_train`.

Objects are never unpickled, so that opening a data file never runs code; see `maskaudit.data.npy`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskaudit.data import npy
from maskaudit.data.arrays import INPUTS, KNOWN_KEYS, dataset
from maskaudit.data.interface import Dataset, Draw, Split
from maskaudit.errors import InputError, MaskauditError, describe_error, printable

HOW = "numpy.savez(x=…, y=…)"


def load(
    path: Path, split: Split, bounds: tuple[float, float], limit: int | None = None, draw: Draw | None = None
) -> Dataset:
    """Read an .npz file; see `maskaudit.data.arrays.dataset` for what its arrays are.

    Of inputs that do not fit into memory only the rows that are wanted are read.

    Raises:
        InputError: for a file that is damaged, lacks an array or holds something else.
    """
    return dataset(path, _read(path), split, bounds, limit, draw, how=HOW)


def _read(path: Path) -> Mapping[str, Any]:
    """The arrays that are known here; others by name, empty."""
    with path.open("rb") as stream:
        start = stream.read(6)
    if not start.startswith(b"PK"):
        what = "empty" if not start else "of no form that data come in (docs/data.md lists them)"
        raise InputError(f"{path} is {what}; save inputs and labels with numpy.savez(x=…, y=…).")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise ValueError("two of its members have one name")
            found = {
                key: npy.read(archive, members[key], str(path), by_rows=key in INPUTS)
                for key in members
                if key in KNOWN_KEYS
            }
    except MemoryError as error:
        raise InputError(f"{path} claims arrays that do not fit into memory; save fewer points.") from error
    except MaskauditError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and ast raise almost anything on damaged bytes
        raise InputError(
            f"{path} cannot be read as .npz, it may be truncated or damaged: {describe_error(error)}."
        ) from error
    return found | {printable(key, 60): np.empty(0) for key in members if key not in found}
