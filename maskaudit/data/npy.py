"""One array of an .npz archive, with every size compared before memory is taken; nothing in it is ever unpickled."""

from __future__ import annotations

import io
import math
import warnings
import zipfile

import numpy as np

from maskaudit.errors import InputError, printable
from maskaudit.files import largest_file

#: Largest header of an array: magic, length and text; numpy itself parses no longer text.
MAX_HEADER = 10_240
#: Kinds of number (and text) that are read.
KINDS = "biufU"


def read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: str) -> np.ndarray:
    """The array in a member.

    Raises:
        InputError: for another content than the header announces, objects, or more than a quarter of memory; besides
            it, whatever zipfile and numpy raise on damaged bytes.
    """
    where = f"{source}: {printable(member.filename, 60)}"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{where} is packed in an unusual way; save with numpy.savez or numpy.savez_compressed.")
    with archive.open(member) as stream:
        head = io.BytesIO(stream.read(MAX_HEADER))
        shape, fortran, dtype = _header(head)
        if dtype.hasobject:
            raise InputError(
                f"{where} holds object arrays, which would run code when opened; save plain number arrays."
            )
        if dtype.kind not in KINDS:
            raise InputError(f"{where} holds an array of {printable(str(dtype), 60)}; save plain number arrays.")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or head.tell() + size != member.file_size:
            raise InputError(f"{where} is damaged: it does not hold what its header announces.")
        if math.prod(shape) * max(dtype.itemsize, np.dtype(np.float32).itemsize) > largest_file():
            raise InputError(f"{where} does not fit into a quarter of the memory here; save fewer points.")
        content = bytearray(head.read())
        content += stream.read(member.file_size)  # no more than is left of it; at the end its checksum is compared
    if len(content) != size:
        raise InputError(f"{where} is truncated.")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _header(head: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis varies fastest, and type; the buffer is left at the first number."""
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers that Python 2 wrote
        return reader[np.lib.format.read_magic(head)](head)
