"""IDX, the format of MNIST and Fashion-MNIST: arrays of unsigned bytes behind a short header, often gzipped.

Header: two zero bytes, the type (8 for unsigned bytes), the number of axes, then the length
of each axis as a big-endian 32-bit number (LeCun, Cortes, Burges 1998, the MNIST database).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from maskaudit.errors import InputError

#: Type code of unsigned bytes.
UNSIGNED_BYTE = 8
#: Most axes and bytes of an array that is read: images need 3 axes, all of MNIST 47 million bytes.
MAX_AXES = 4
MAX_BYTES = 2**28
_GZIP = b"\x1f\x8b"


def read(path: Path, limit: int | None = None) -> np.ndarray:
    """The uint8 array that `path` holds, gzipped or not; no more is unpacked than the header announces.

    With `limit` only so many entries of the first axis are read, and what follows them is not looked at.

    Raises:
        InputError: for a file that is missing, damaged, not IDX, not of unsigned bytes, or of a size that it denies.
    """
    try:
        with path.open("rb") as stream:
            packed = stream.read(len(_GZIP)) == _GZIP
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            zeros, kind, axes = struct.unpack(">HBB", _exactly(path, stream.read(4), 4))
            if zeros != 0 or kind != UNSIGNED_BYTE or not 1 <= axes <= MAX_AXES:
                raise InputError(f"{path} is not an IDX file of unsigned bytes; put the original file there.")
            shape = struct.unpack(f">{axes}I", _exactly(path, stream.read(4 * axes), 4 * axes))
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise InputError(f"{path} announces {size} bytes, above the limit of {MAX_BYTES}; it is damaged.")
            if limit is not None and limit < shape[0]:
                shape = (limit, *shape[1:])
                return _array(_exactly(path, stream.read(math.prod(shape)), math.prod(shape)), shape)
            content = _exactly(path, stream.read(size), size)
            if stream.read(1):
                raise InputError(f"{path} holds more than the {size} bytes its header announces; it is damaged.")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} cannot be read, it may be truncated or damaged: {error}.") from error
    return _array(content, shape)


def _array(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _exactly(path: Path, content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise InputError(f"{path} ends after {len(content)} of {size} bytes; it is truncated.")
    return content
