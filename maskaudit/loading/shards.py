"""Weights in several safetensors files, with the index that says which tensor lies in which (`….index.json`)."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path, PurePosixPath

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from maskaudit.declared import Anything, Record, Table, Text, read
from maskaudit.declared.parsing import parse_json
from maskaudit.errors import InputError, describe_error, printable
from maskaudit.files import is_file, largest_file, read_bounded
from maskaudit.loading import arch, state
from maskaudit.loading.checkpoint import parse_metadata
from maskaudit.loading.interface import Contents, ModelFile, Options
from maskaudit.loading.weights import Holder

#: Largest index, in bytes, most tensors that it may list, and most files.
MAX_INDEX, MAX_TENSORS, MAX_FILES = 25_000_000, 200_000, 1_000
#: How a shard is called by those who write them.
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors")

INDEX = Record(
    {"metadata": Anything(), "weight_map": Table(Text(1000, 1), MAX_TENSORS)}, ("weight_map",), ignore_unknown=True
)


def read_index(file: ModelFile, options: Options) -> Contents:
    """The module that the user names, filled with the tensors of all files that an index lists.

    Raises:
        InputError: for a file that is no index, shards that are missing, damaged, outside the folder of the index or
            too large together, or tensors that are not where the index says.
    """
    document = parse_json(file.data, file.source, most=MAX_INDEX)
    if not isinstance(document, dict) or "weight_map" not in document:
        raise InputError(
            f"{file.source} is JSON, but not an index of weights: it has no weight_map; give the model file."
        )
    places = read(INDEX, document, file.source)["weight_map"]
    if options.arch is None:
        raise state.need_arch(file.source)
    digest = hashlib.sha256(file.sha256.encode())
    tensors: dict[str, Tensor] = {}
    room = largest_file() - len(file.data)
    names = list(dict.fromkeys(places.values()))
    if len(names) > MAX_FILES:
        raise InputError(f"{file.source} names {len(names)} files; at most {MAX_FILES} are read.")
    for name in names:
        content = read_bounded(_beside(file.source, name), max(room, 0), f"{file.source}: {printable(name, 80)}")
        room -= len(content)
        digest.update(content)
        parse_metadata(printable(name, 80), io.BytesIO(content), len(content))
        held = _load(file.source, name, content)
        tensors |= {key: value for key, value in held.items() if places.get(key) == name}
    missing = [key for key in places if key not in tensors]
    if missing:
        raise InputError(
            f"{file.source}: {len(missing)} tensors are not in the files that it names, the first is "
            f"{printable(missing[0], 80)}; copy all files again."
        )
    module = arch.build(options.arch)
    notes = state.fit(module, [Holder((), tensors)], file.source, options.arch, options.weights)
    note = f"The weights are in {len(names)} files next to the index, which the digest covers as well."
    return Contents(module, "safetensors", {}, arch.trusted_code(options.arch), (note, *notes), digest.hexdigest())


def index_of(source: str) -> str:
    """What to say of a file that is called as one of several are: its index; empty for any other."""
    found = SHARD.fullmatch(Path(source).name)
    if found is None:
        return ""
    return f" It is one of several files: give {found['stem']}.safetensors.index.json, which is next to them."


def _beside(source: str, name: str) -> Path:
    """A file in the folder of the index."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or len(relative.parts) != 1 or ".." in relative.parts or "\\" in name:
        raise InputError(f"{source} keeps weights in {printable(name, 80)!r}, outside its own folder, and is refused.")
    path = Path(source).parent / name
    if not is_file(path):
        raise InputError(f"{source} keeps weights in the file {printable(name, 80)!r}, which is not next to it.")
    return path


def _load(source: str, name: str, content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(
            f"{source}: {printable(name, 80)} is a truncated or damaged safetensors file ({describe_error(error)}); "
            "copy it again."
        ) from error
