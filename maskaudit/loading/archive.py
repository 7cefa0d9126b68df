"""Archives that mean one thing only: a zip from the first byte to the last, and nothing that is also a tar.

What one reader sees in an ambiguous file another does not; torch, for example, opens a file that is a tar and a
legacy checkpoint as a tar (CVE-2025-32434 lay there). Such files are refused before any reader is given them.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections import Counter
from pathlib import PurePosixPath

from maskaudit.errors import InputError, describe_error, printable
from maskaudit.loading.interface import ModelFile

ZIP_START = b"PK\x03\x04"
#: End of the central directory: signature, 16 bytes, length of a comment; and the two records of zip64 before it.
ZIP_END, END_SIZE, MAX_COMMENT = b"PK\x05\x06", 22, 2**16 - 1
ZIP64_END, ZIP64_SIZE = b"PK\x06\x06", 56 + 20
#: Size of a member's local header without its name.
LOCAL_HEADER = 30
#: A zip whose members unpack to more than this many times its size (plus an allowance) is refused;
#: torch stores tensors uncompressed, only source code and debug tables are deflated.
MAX_EXPANSION = 20
EXPANSION_ALLOWANCE = 256 * 2**20
#: Most members of a zip, each of which costs every reader some time: torch writes one per tensor.
MAX_MEMBERS = 100_000
#: One block of a tar archive, in bytes.
TAR_BLOCK = 512


def is_tar(head: bytes) -> bool:
    """Whether the first 512 bytes are a header of tar, with or without the mark that newer versions write."""
    if len(head) < TAR_BLOCK:
        return False
    try:
        tarfile.TarInfo.frombuf(head[:TAR_BLOCK], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def ends_as_zip(data: bytes) -> bool:
    """Whether the end of the bytes is that of a zip archive."""
    place = data.rfind(ZIP_END, max(0, len(data) - END_SIZE - MAX_COMMENT))
    if place < 0 or place + END_SIZE > len(data):
        return False
    return place + END_SIZE + int.from_bytes(data[place + 20 : place + END_SIZE], "little") == len(data)


def member_names(file: ModelFile) -> set[str]:
    """Names of the members of a zip, without folders.

    Raises:
        InputError: for a zip that is damaged, ambiguous, or would unpack to many times its size.
    """
    if not file.data.startswith(ZIP_START):
        raise InputError(f"{file.source} is truncated or damaged; copy or export it again.")
    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            members = archive.infolist()
            directory = archive.start_dir
    except (zipfile.BadZipFile, OSError, ValueError, OverflowError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{file.source} is truncated or damaged ({describe_error(error)}); copy or export it again."
        ) from error
    if len(members) > MAX_MEMBERS:
        raise InputError(f"{file.source} is a zip archive of {len(members)} members; at most {MAX_MEMBERS} are read.")
    if sum(member.file_size for member in members) > MAX_EXPANSION * len(file.data) + EXPANSION_ALLOWANCE:
        raise InputError(f"{file.source} would unpack to many times its size and is refused.")
    trouble = _ambiguity(file.data, members, directory)
    if trouble:
        raise InputError(f"{file.source} is refused: {trouble}, so that readers could disagree; export it again.")
    return {PurePosixPath(member.filename).name for member in members}


def _ambiguity(data: bytes, members: list[zipfile.ZipInfo], directory: int) -> str:
    """What another reader of zip could see otherwise; empty if nothing."""
    name, times = Counter(member.filename for member in members).most_common(1)[0] if members else ("", 0)
    if times > 1:
        return f"its archive holds {printable(name, 60)} twice"
    end = 0
    for member in sorted(members, key=lambda item: item.header_offset):
        if member.header_offset < end or not data.startswith(ZIP_START, member.header_offset):
            return "the members of its archive overlap"
        if end == 0 and member.header_offset != 0:
            return "it has bytes before its archive"
        end = member.header_offset + LOCAL_HEADER + member.compress_size
    if end > directory or data[-END_SIZE:-18] != ZIP_END or data[-2:] != b"\0\0":
        return "it has bytes after its archive"
    size = int.from_bytes(data[-10:-6], "little")
    wide = ZIP64_SIZE if data.startswith(ZIP64_END, len(data) - END_SIZE - ZIP64_SIZE) else 0
    if size != 2**32 - 1 and directory + size + wide + END_SIZE != len(data):
        return "it has bytes after the directory of its archive"
    return ""
