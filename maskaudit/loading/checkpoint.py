"""Our own checkpoints: safetensors files that say what they are.

`__metadata__["maskaudit"]` is a JSON object (`arch`, `data`, `threat`, …), read through
`maskaudit.loading.file_metadata`. Nothing in it is ever executed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from maskaudit.declared.parsing import parse_json
from maskaudit.errors import InputError, UsageError, describe_error
from maskaudit.files import write_atomically
from maskaudit.loading import file_metadata

#: Key of our JSON inside the metadata of a safetensors file.
METADATA_KEY = "maskaudit"
#: Largest header that is parsed, in bytes: some 200 000 tensors, a quarter of the format's own limit.
MAX_HEADER = 25_000_000
#: Length of the field in front of the header, in bytes.
PREFIX = 8


def save_checkpoint(path: str | os.PathLike[str], module: nn.Module, metadata: dict[str, Any]) -> None:
    """Write the module's state and what `check` needs to know about it.

    The file appears complete or not at all. Tied weights are stored once per name.

    Raises:
        UsageError: for metadata that are not plain JSON, or that would be refused on reading.
        InputError: for a state that safetensors cannot hold, or a path that cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        text = json.dumps(metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The metadata of a checkpoint must be plain JSON: {describe_error(error)}.") from error
    file_metadata.check(metadata, "The metadata", error=UsageError)
    try:
        blob = safetensors.torch.save(_independent(module), metadata={METADATA_KEY: text})
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"The module's state cannot be stored as safetensors: {describe_error(error)}.") from error
    _write(target, blob)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The declared fields of what a safetensors file says about itself, reading its header only; empty without.

    Raises:
        InputError: for a file that is missing, damaged or not safetensors, or a field that is refused.
    """
    source = os.fspath(path)
    if not os.path.isfile(source):
        raise InputError(f"There is no file {source!r}.")
    try:
        size = os.stat(source).st_size
        with open(source, "rb") as stream:
            return _metadata(source, _header(source, stream, size))
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be read: {describe_error(error)}.") from error


def parse_metadata(source: str, stream: BinaryIO, size: int) -> dict[str, Any]:
    """The same for an open file or buffer of `size` bytes, positioned at its start."""
    return _metadata(source, _header(source, stream, size))


def _header(source: str, stream: BinaryIO, size: int) -> dict[str, Any]:
    length = int.from_bytes(stream.read(PREFIX), "little")
    if size < PREFIX + 2 or length > min(size - PREFIX, MAX_HEADER):
        raise InputError(f"{source} is not a whole safetensors file: its header is cut off or damaged.")
    header = parse_json(stream.read(length), f"The header of {source}", most=MAX_HEADER)
    if not isinstance(header, dict):
        raise InputError(f"{source} is not a safetensors file: its header is not a JSON object.")
    return header


def _metadata(source: str, header: dict[str, Any]) -> dict[str, Any]:
    outer = header.get("__metadata__", {})
    text = outer.get(METADATA_KEY) if isinstance(outer, dict) else None
    return {} if text is None else file_metadata.parse(text, source)


def _independent(module: nn.Module) -> dict[str, Tensor]:
    """The state with every tensor contiguous, on the CPU and in memory of its own (safetensors refuses sharing)."""
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is not a tensor")
        state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state


def _write(target: Path, blob: bytes) -> None:
    try:
        write_atomically(target, blob)
    except OSError as error:
        raise InputError(f"The checkpoint {str(target)!r} cannot be written: {describe_error(error)}.") from error
