"""One array of an .npz archive or of a file, with every size compared before memory is taken.

Nothing in it is ever unpickled.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from maskaudit.errors import InputError, MaskauditError, describe_error, printable
from maskaudit.files import largest_file

#: Largest header of an array: magic, length and text; numpy itself parses no longer text.
MAX_HEADER = 10_240
#: Kinds of number (and text) that are read.
KINDS = "biufU"


@dataclass(frozen=True)
class OnDisk:
    """An array that is too large to be read as a whole: rows (first axis) of it are.

    Attributes:
        path, member: archive and member; `start` is where in the member the numbers begin.
        where: what messages call it.
    """

    path: str
    member: zipfile.ZipInfo
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    where: str

    @property
    def ndim(self) -> int:
        """Number of axes of the stored array."""
        return len(self.shape)

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers (n,), as an array (n, …); packed members are unpacked up to the last of them.

        Raises:
            InputError: they do not fit into memory, or are not there.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        check_room(len(rows) * math.prod(self.shape[1:]), self.dtype, self.where)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        with self._opened() as (stream, start):
            for place in np.argsort(rows, kind="stable"):
                stream.seek(start + int(rows[place]) * size)
                content = stream.read(size)
                if len(content) != size:
                    raise InputError(f"{self.where} is truncated.")
                found[place] = np.frombuffer(content, self.dtype).reshape(self.shape[1:])
        return found

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], int]]:
        """The member, and where in that stream its numbers begin; one that is not packed lies open in the file."""
        if self.member.compress_type != zipfile.ZIP_STORED:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                yield stream, self.start
            return
        with open(self.path, "rb") as file:
            file.seek(self.member.header_offset)
            signature, names, extra = struct.unpack("<4s22xHH", file.read(30))
            if signature != b"PK\x03\x04":
                raise InputError(f"{self.where} is damaged: it does not begin where the archive says.")
            yield file, self.member.header_offset + 30 + names + extra + self.start


def read(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: str, *, by_rows: bool = False
) -> np.ndarray | OnDisk:
    """The array in a member.

    Args:
        by_rows: leave one that is too large on the disk.

    Raises:
        InputError: for another content than the header announces, objects, or more than a quarter of memory; besides
            it, whatever zipfile and numpy raise on damaged bytes.
    """
    where = f"{source}: {printable(member.filename, 60)}"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{where} is packed in an unusual way; save with numpy.savez or numpy.savez_compressed.")
    with archive.open(member) as stream:
        return _read(stream, member.file_size, where, (source, member) if by_rows else None)


def read_file(path: Path) -> np.ndarray:
    """The array in a file of its own.

    Raises:
        InputError: for another content than its header announces, objects, or more than a quarter of memory.
    """
    try:
        with path.open("rb") as stream:
            found = _read(stream, os.fstat(stream.fileno()).st_size, str(path), None)
    except MaskauditError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} claims an array that does not fit into memory; save fewer points.") from error
    except Exception as error:  # numpy and ast raise almost anything on damaged bytes
        raise InputError(f"{path} cannot be read as .npy, it may be damaged: {describe_error(error)}.") from error
    assert isinstance(found, np.ndarray)
    return found


def _read(stream: IO[bytes], total: int, where: str, large: tuple[str, zipfile.ZipInfo] | None) -> np.ndarray | OnDisk:
    """The array in a stream of `total` bytes; one that is too large is left in its `large` archive and member."""
    head = io.BytesIO(stream.read(MAX_HEADER))
    shape, fortran, dtype = _header(head)
    if dtype.hasobject:
        raise InputError(f"{where} holds object arrays, which would run code when opened; save plain number arrays.")
    if dtype.kind not in KINDS:
        raise InputError(f"{where} holds an array of {printable(str(dtype), 60)}; save plain number arrays.")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or head.tell() + size != total:
        raise InputError(f"{where} is damaged: it does not hold what its header announces.")
    if large and shape and not fortran and not _fits(math.prod(shape), dtype):
        return OnDisk(large[0], large[1], head.tell(), shape, dtype, where)
    check_room(math.prod(shape), dtype, where)
    content = bytearray(head.read())
    content += stream.read(total)  # no more than is left of it; at the end of a member its checksum is compared
    if len(content) != size:
        raise InputError(f"{where} is truncated.")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _fits(numbers: int, dtype: np.dtype) -> bool:
    return numbers * max(dtype.itemsize, np.dtype(np.float32).itemsize) <= largest_file()


def check_room(numbers: int, dtype: np.dtype, where: str) -> None:
    """Raise InputError if so many numbers, as they are or as float32, take more than a quarter of the memory here."""
    if not _fits(numbers, dtype):
        raise InputError(f"{where} does not fit into a quarter of the memory here; save or audit fewer points.")


def _header(head: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis varies fastest, and type; the buffer is left at the first number."""
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers that Python 2 wrote
        return reader[np.lib.format.read_magic(head)](head)
