"""Reads a model file once and tells its format from the content, never from the suffix."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path, PurePosixPath

from maskaudit.errors import InputError
from maskaudit.loading.interface import ModelFile

#: A zip whose members unpack to more than this many times its size (plus an allowance) is refused;
#: torch stores tensors uncompressed, only source code and debug tables are deflated.
MAX_EXPANSION = 20
EXPANSION_ALLOWANCE = 256 * 2**20
ZIP_START = b"PK\x03\x04"
#: Tags that follow `ir_version` (field 1, a small number) in an ONNX file: fields 2 to 8 of ModelProto.
ONNX_TAGS = frozenset((0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42))
TAR_MARK = slice(257, 262)


def read_file(source: str) -> ModelFile:
    """All bytes of a regular file.

    Raises:
        InputError: when it is missing, a folder, a device or pipe, empty, or cannot be read.
    """
    path = Path(source)
    try:
        if path.is_dir():
            raise InputError(f"{source} is a folder; give the model file inside it.")
        if not path.is_file():
            if path.exists():
                raise InputError(f"{source} is not a regular file; copy the model into one.")
            raise InputError(
                f"There is no model file {source!r}; check the path, or see maskaudit zoo list for zoo:NAME."
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be read: {error}.") from error
    except MemoryError as error:
        raise InputError(f"{source} does not fit into memory.") from error
    if not data:
        raise InputError(f"{source} is empty (0 bytes); export the model again.")
    return ModelFile(source, data)


def sniff(file: ModelFile) -> str:
    """The format: safetensors, state_dict (torch.save zip), legacy, pickle, torchscript, pt2 or onnx.

    Raises:
        InputError: for a damaged archive, or anything else.
    """
    data = file.data
    if data.startswith(b"PK"):
        return _sniff_zip(file)
    if data[8:9] == b"{":
        return "safetensors"
    if data.startswith(LEGACY_START):
        return "legacy"
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if len(data) > 2 and data[0] == 0x08 and data[1] < 0x20 and data[2] in ONNX_TAGS:
        return "onnx"
    if data[TAR_MARK] == b"ustar":
        raise InputError(f"{file.source} is a tar archive; unpack it and give the model file inside.")
    raise InputError(
        f"{file.source} is no model format that is read here, or its start is damaged; expected safetensors, "
        "a PyTorch state dict, TorchScript, an exported program (.pt2) or ONNX."
    )


#: Start of a torch.save file before torch 1.6: a pickle of its magic number 0x1950a86a20f9469cfc6c.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def _sniff_zip(file: ModelFile) -> str:
    if not file.data.startswith(ZIP_START):
        raise InputError(f"{file.source} is truncated or damaged; copy or export it again.")
    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{file.source} is truncated or damaged ({error}); copy or export it again.") from error
    if sum(member.file_size for member in members) > MAX_EXPANSION * len(file.data) + EXPANSION_ALLOWANCE:
        raise InputError(f"{file.source} would unpack to many times its size and is refused.")
    names = {PurePosixPath(member.filename).name for member in members}
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return "pt2"
    if "constants.pkl" in names:
        return "torchscript"
    if "data.pkl" in names:
        return "state_dict"
    if any(name.endswith(".npy") for name in names):
        raise InputError(f"{file.source} is an .npz file, not a model; give it as --data {file.source}.")
    raise InputError(f"{file.source} is a zip archive without a model; unpack it and give the model file inside.")
