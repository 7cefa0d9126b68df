"""`py:pkg.mod:callable`: points that the user's own code makes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from maskaudit.data.interface import Dataset, Draw, Split
from maskaudit.errors import InputError, describe_error
from maskaudit.loading import arch


def load(
    name: str, split: Split, bounds: tuple[float, float], limit: int | None = None, draw: Draw | None = None
) -> Dataset:
    """What `name` (`file.py:callable` or `pkg.mod:callable`, with keyword arguments if any) returns.

    The callable is given `split` and `bounds` if it has parameters of these names. It returns a
    `Dataset`, or a pair of inputs (N, C, H, W) or (N, D), floating point and inside the bounds, and
    integer labels (N,), as tensors or arrays; they may lie on the disk (`numpy.memmap`).

    Raises:
        UsageError: for a malformed name.
        InputError: for code that cannot be imported, fails or returns something else.
    """
    made, taken = arch.make_with(name, {"split": split, "bounds": bounds})
    notes = () if "split" in taken else ("The callable takes no split: its train and test splits are the same points.",)
    if isinstance(made, Dataset):
        if made.bounds != bounds:
            raise InputError(f"py:{name} gave a Dataset with the bounds {made.bounds}, but {bounds} are in force.")
        return replace(made, split=split, notes=made.notes + notes)
    if not isinstance(made, (tuple, list)) or len(made) != 2:
        raise InputError(f"py:{name} must return a pair (x, y) or a Dataset, got an object of type {_kind(made)}.")
    x, y = (_tensor(name, part) for part in made)
    if not x.is_floating_point() or y.is_floating_point():
        raise InputError(f"py:{name} must return float inputs and integer labels, got {x.dtype} and {y.dtype}.")
    classes = max(2, int(y.max()) + 1) if y.numel() else 2
    return Dataset(f"py:{name}", x.float(), y.long(), classes, bounds, split=split, notes=notes)


def _tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, (Tensor, np.ndarray)):
        raise InputError(f"py:{name} must return tensors or arrays, got an object of type {_kind(value)}.")
    try:
        return torch.as_tensor(value).detach().cpu()
    except TypeError as error:
        raise InputError(
            f"py:{name} returned an array that cannot become a tensor: {describe_error(error)}."
        ) from error


def _kind(value: object) -> str:
    return type(value).__name__
