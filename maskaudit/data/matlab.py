"""Numeric arrays of MATLAB files, level 5 (MathWorks, "MAT-File Format", chapter 1), with every size compared first.

scipy's reader is written in C and ends the process on some damaged files.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from maskaudit.data.npy import check_room
from maskaudit.errors import InputError, printable
from maskaudit.files import largest_file, read_bounded

#: Length of the text and the version at the start of a file, in bytes.
HEAD = 128
#: Kinds of element that hold others.
MATRIX, PACKED = 14, 15
#: Kinds of element that hold numbers.
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
#: Classes of array, and the type of their numbers in memory (a file may keep them in a shorter one).
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
#: Flag of arrays with an imaginary part, and most axes.
COMPLEX, MAX_AXES = 0x0800, 32


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of these names that a file holds; others are passed over.

    Raises:
        InputError: for a file that is damaged, of another level, or holds more than a quarter of the memory here, and
            for arrays of something other than real numbers.
    """
    content = read_bounded(path, largest_file(), str(path))
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or struct.unpack(f"{order}H", content[124:126])[0] != 0x0100:
        raise InputError(f"{path} is not a MATLAB file of level 5; save it with -v6 or -v7.")
    found: dict[str, np.ndarray] = {}
    try:
        for kind, data in _elements(memoryview(content)[HEAD:], order):
            if kind == PACKED:
                (kind, data), *_ = _elements(_unpacked(path, data), order)
            if kind == MATRIX:
                named = _array(path, data, order, names)
                found |= dict([named] if named else [])
    except (struct.error, zlib.error, ValueError) as error:
        raise InputError(f"{path} cannot be read, it may be damaged ({printable(str(error), 80)}).") from error
    return found


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Kind and content of one element after the other."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind >> 16:  # a short one: the size is above the kind, and the content within the tag
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            if size > 4:
                raise ValueError(f"an element of {size} bytes in a place for 4")
        if start + size > len(data):
            raise ValueError("an element ends behind its end")
        yield kind, data[start : start + size]
        place = start + size
        if kind != PACKED:
            place += -place % 8


def _unpacked(path: Path, data: memoryview) -> memoryview:
    stream = zlib.decompressobj()
    content = stream.decompress(data, largest_file())
    if not stream.eof:
        raise InputError(f"{path} is truncated, or unpacks to more than a quarter of the memory here.")
    return memoryview(content)


def _array(path: Path, data: memoryview, order: str, names: Collection[str]) -> tuple[str, np.ndarray] | None:
    """Name and array of a matrix element, None if its name is not asked for."""
    parts = _elements(data, order)
    flags = struct.unpack_from(f"{order}I", next(parts, (0, data[:0]))[1])[0]
    lengths = next(parts, (0, data[:0]))[1]
    shape = struct.unpack(f"{order}{len(lengths) // 4}i", lengths)
    name = bytes(next(parts, (0, data[:0]))[1]).decode("latin-1")
    if name not in names:
        return None
    where = f"{path}: {name}"
    if flags & 0xFF not in CLASSES or flags & COMPLEX:
        raise InputError(f"{where} is not a full array of real numbers.")
    if not 2 <= len(shape) <= MAX_AXES or min(shape) < 0:
        raise ValueError("an array of no shape")
    kind, numbers = next(parts, (0, data[:0]))
    kept, dtype = np.dtype(order + NUMBERS.get(kind, "u1")), np.dtype(CLASSES[flags & 0xFF])
    if kind not in NUMBERS or math.prod(shape) * kept.itemsize != len(numbers):
        raise InputError(f"{where} does not hold what its header announces; the file is damaged.")
    check_room(math.prod(shape), dtype, where)
    return name, np.frombuffer(numbers, kept).astype(dtype).reshape(shape, order="F")
