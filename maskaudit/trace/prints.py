"""Fingerprints of tensors and of the global generators, to see what moved between two passes."""

from __future__ import annotations

import random
import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Types that numpy does not know.
_NOT_IN_NUMPY = frozenset({torch.bfloat16})


class Print(NamedTuple):
    """Fingerprint of a tensor's data: a checksum of its bytes and the shape."""

    checksum: float
    shape: tuple[int, ...]


def fingerprint(tensor: Tensor) -> Print | None:
    """Checksum over the data, 0 and −0 alike; None for tensors that have no plain data."""
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized or tensor.is_meta:
        return None
    shape = tuple(tensor.shape)
    with torch.no_grad():
        values = tensor.detach()
        if values.device.type != "cpu":
            flat = values.reshape(-1).double()
            return Print(float(flat @ torch.linspace(1.0, 2.0, len(flat), dtype=flat.dtype, device=flat.device)), shape)
        values = values + 0 if values.is_floating_point() else values
        values = values.float() if values.dtype in _NOT_IN_NUMPY else values
        return Print(zlib.crc32(values.contiguous().numpy().data), shape)


def random_states() -> dict[str, object]:
    """States of the global generators, to be compared with each other."""
    kind, keys, position, *gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (kind, np.asarray(keys).tobytes(), position, *gauss),
        "random": random.getstate(),
    }
