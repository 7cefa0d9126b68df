"""Inputs and labels as tensors: files of `torch.save` and safetensors. Nothing in them runs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskaudit.data.arrays import KNOWN_KEYS, dataset
from maskaudit.data.interface import Dataset, Draw, Split
from maskaudit.data.npy import check_room
from maskaudit.errors import InputError, printable
from maskaudit.loading.checkpoint import parse_metadata
from maskaudit.loading.safetensors_file import read_tensors
from maskaudit.loading.sniff import read_file, sniff
from maskaudit.loading.torch_file import read_content

HOW = {"safetensors": 'safetensors.torch.save_file({"x": x, "y": y}, …)', "torch": 'torch.save({"x": x, "y": y}, …)'}


def load(
    path: Path, split: Split, bounds: tuple[float, float], limit: int | None = None, draw: Draw | None = None
) -> Dataset:
    """The points of a file with tensors `x` and `y`, as `maskaudit.data.arrays.dataset` has them.

    A file of `torch.save` may also hold the pair (x, y) alone.

    Raises:
        UntrustedInputError: for a pickle that would run code.
        InputError: for a file that is damaged or holds something else.
    """
    file = read_file(str(path))
    kind = sniff(file)
    if kind == "safetensors":
        parse_metadata(file.source, io.BytesIO(file.data), len(file.data))
        content: Any = read_tensors(file)
    elif kind in ("state_dict", "legacy"):
        content = read_content(file)
    else:
        raise InputError(f"{path} is not a file of data; save one with {HOW['torch']}.")
    how = HOW.get(kind, HOW["torch"])
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip("xy", content, strict=True))
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds an object of type {type(content).__name__}; save inputs and labels with {how}.")
    arrays = {str(key): _array(path, str(key), value) for key, value in content.items() if key in KNOWN_KEYS}
    others = {str(key): np.empty(0) for key in content if key not in KNOWN_KEYS}
    return dataset(path, arrays | others, split, bounds, limit, draw, how=how)


def _array(path: Path, key: str, value: object) -> np.ndarray:
    if isinstance(value, Tensor):
        sparse = value.is_nested or value.layout != torch.strided
        if sparse or value.is_quantized or value.is_complex() or value.is_meta:
            raise InputError(f"{path}: {key} is not a plain dense tensor of real numbers; convert it before saving.")
        check_room(value.numel(), np.dtype(np.float32), f"{path}: {key}")  # one number may be expanded to any size
        half = value.dtype in (torch.bfloat16, torch.float16)
        return (value.detach().float() if half else value.detach()).cpu().numpy()
    if key == "num_classes" and type(value) is int:
        return np.array(value)
    if key == "class_names" and isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return np.array(value)
    raise InputError(f"{path}: {key} must be a tensor, found an object of type {printable(type(value).__name__, 60)}.")
