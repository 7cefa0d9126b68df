"""Reads a model file once and tells its format from the content, never from the suffix."""

from __future__ import annotations

import os
from pathlib import Path

from maskaudit.errors import InputError
from maskaudit.files import largest_file
from maskaudit.loading.archive import TAR_BLOCK, ends_as_zip, is_tar, member_names
from maskaudit.loading.interface import ModelFile

#: Tags that follow `ir_version` (field 1, a small number) in an ONNX file: fields 2 to 8 of ModelProto.
ONNX_TAGS = frozenset((0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42))
#: Start of a torch.save file before torch 1.6: a pickle of its magic number 0x1950a86a20f9469cfc6c.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_file(source: str) -> ModelFile:
    """All bytes of a regular file of a known format that fits into memory.

    Raises:
        InputError: when it is missing, a folder, a device or pipe, empty, too large, of no known format, or cannot
            be read.
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
        with path.open("rb") as stream:
            head = stream.read(TAR_BLOCK)
            if not head:
                raise InputError(f"{source} is empty (0 bytes); export the model again.")
            _kind(source, head)
            most = largest_file()
            size = os.fstat(stream.fileno()).st_size
            data = head + stream.read(size if size <= most else 0)
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be read: {error}.") from error
    except MemoryError as error:
        raise InputError(f"{source} does not fit into memory.") from error
    if size > most:
        raise InputError(
            f"{source} is larger than {most / 2**30:.1f} GiB, a quarter of the memory here; audit it on a machine with "
            "more."
        )
    return ModelFile(source, data)


def sniff(file: ModelFile) -> str:
    """The format: safetensors, index (of shards), state_dict (a zip), legacy, pickle, torchscript, pt2 or onnx.

    Raises:
        InputError: for a damaged archive, a file that is of two formats at once, or anything else.
    """
    kind = _kind(file.source, file.data[:TAR_BLOCK])
    if kind == "zip":
        return _zip_kind(file)
    if ends_as_zip(file.data):
        raise InputError(
            f"{file.source} starts as {kind} and ends as a zip archive: a file of two formats is refused; export it "
            "again."
        )
    return kind


def _kind(source: str, head: bytes) -> str:
    """What the start of a file says."""
    if is_tar(head):
        raise InputError(f"{source} is a tar archive; unpack it and give the model file inside.")
    if head.startswith(b"PK"):
        return "zip"
    if head.lstrip().startswith(b"{") and b"\0" not in head[:9]:
        return "index"
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(LEGACY_START):
        return "legacy"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if len(head) > 2 and head[0] == 0x08 and head[1] < 0x20 and head[2] in ONNX_TAGS:
        return "onnx"
    raise InputError(
        f"{source} is not a model format that is read here, or its start is damaged; expected safetensors, "
        "a PyTorch state dict, TorchScript, an exported program (.pt2) or ONNX."
    )


def _zip_kind(file: ModelFile) -> str:
    names = member_names(file)
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return "pt2"
    if "constants.pkl" in names:
        return "torchscript"
    if "data.pkl" in names:
        return "state_dict"
    if any(name.endswith(".npy") for name in names):
        raise InputError(f"{file.source} is an .npz file, not a model; give it as --data {file.source}.")
    raise InputError(f"{file.source} is a zip archive without a model; unpack it and give the model file inside.")
