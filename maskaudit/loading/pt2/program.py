"""The program inside a .pt2 archive, read as data.

Weights are raw bytes, and the program is a list of operations of torch's own `aten` set, each called with
the arguments that the file states (torch/_export/serde/schema.py). Nothing is imported, evaluated or unpickled.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.errors import printable
from maskaudit.loading.graph import Program, Shape
from maskaudit.loading.graph_limits import TooLarge, check_name, input_shape
from maskaudit.loading.pt2.steps import DTYPES, Beyond, in_training, is_steady, only, read_steps
from maskaudit.loading.torch_file import check_version

#: Major version of the program's schema that is understood (torch 2.5 to 2.13 write 8).
SCHEMA_MAJOR = 8
#: Length of a JSON member, and how many values it may hold.
MAX_JSON, MAX_VALUES = 48 * 2**20, 3_000_000
#: Bytes that all weights may take: so many times the archive's length, and an allowance.
MAX_EXPANSION, ALLOWANCE = 4, 64 * 2**20
#: Members in which torch before 2.8 keeps weights.
OLDER = (
    "data/weights/model.pt", "data/constants/model.pt", "serialized_state_dict.pt", "serialized_state_dict.json",
    "serialized_constants.pt", "serialized_constants.json",
)  # fmt: skip


class Members(Mapping[str, bytes]):
    """Members of a zip archive by their path without its top folder, each read when it is asked for."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._infos = {_inside(info.filename): info for info in archive.infolist()}

    def __getitem__(self, name: str) -> bytes:
        return self._archive.read(self._infos[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def is_pickle(self, name: str) -> bool:
        """Whether a member begins as a binary pickle does; of the weights one in 256 begins with the same byte."""
        with self._archive.open(self._infos[name]) as stream:
            start = stream.read(2)
        return start[:1] == pickle.PROTO and start[1:] <= bytes([pickle.HIGHEST_PROTOCOL])


def _inside(name: str) -> str:
    parts = PurePosixPath(name).parts
    return "/".join(parts[1:]) if len(parts) > 1 else name


def pickled(entry: dict[str, Any]) -> bool:
    """Whether a tensor is stored as a pickle, by its entry in the list of payloads."""
    return bool(entry["use_pickle"])


def read_json(content: bytes) -> Any:
    """A JSON member.

    Raises:
        TooLarge: when it is longer than a program needs.
        ValueError: when it is no JSON.
    """
    values = sum(map(content.count, (b",", b"[", b"{")))
    if len(content) > MAX_JSON or values > MAX_VALUES:
        raise TooLarge(f"its description has {len(content)} bytes and {values} values, "
                       f"{MAX_JSON} and {MAX_VALUES} are read")  # fmt: skip
    return json.loads(content.decode("utf-8"))


def read_program(members: Members, size: int) -> tuple[nn.Module, Shape, torch.dtype, tuple[str, ...]]:
    """The program among an archive's members.

    Args:
        members: of the archive; size: its length in bytes, which bounds what its weights may take.

    Returns:
        The module, the shape of its input (None where it may vary) and its type, and notes.

    Raises:
        Beyond: when it needs more than data.
        KeyError, TypeError, ValueError, …: when it is not as the schema has it.
    """
    described = next(
        (members[name] for name in ("models/model.json", "serialized_exported_program.json") if name in members), None
    )
    if described is None:
        raise Beyond("it holds no program named model")
    stated = read_json(described)
    version = stated["schema_version"]
    if version["major"] != SCHEMA_MAJOR:
        raise Beyond(f"its schema has version {version['major']}, and {SCHEMA_MAJOR} is understood")
    graph, signature = stated["graph_module"]["graph"], stated["graph_module"]["signature"]
    tensors, inputs = _inputs(signature["input_specs"], _tensors(members, MAX_EXPANSION * size + ALLOWANCE))
    if len(inputs) != 1:
        raise ValueError(f"the program takes {len(inputs)} inputs, a classifier takes one")
    results = tuple(
        only(stated_output["user_output"]["arg"])["name"]
        for stated_output in signature["output_specs"]
        if "user_output" in stated_output
    )
    steps = read_steps(graph)
    module = Program(steps, tensors, inputs[0], results, steady=is_steady(steps))
    given = graph["tensor_values"][inputs[0]]
    shape = input_shape(length.get("as_int") for length in given["sizes"])
    notes: tuple[str, ...] = ()
    if any(in_training(node) for node in graph["nodes"]):
        notes = ("The program was exported in training mode, and keeps that behaviour.",)
    return module, shape, DTYPES[given["dtype"]], notes


def _inputs(specs: list[Any], weights: dict[str, Tensor]) -> tuple[dict[str, tuple[str, Tensor]], list[str]]:
    """Weights by the name of their value, with their paths; and the names of what the user gives."""
    tensors: dict[str, tuple[str, Tensor]] = {}
    users: list[str] = []
    for spec in specs:
        ((kind, content),) = spec.items()
        if kind == "user_input":
            users.append(only(content["arg"])["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            path = check_name(content[f"{kind}_name"])
            tensors[content["arg"]["name"]] = (path, weights[path])
        else:
            raise Beyond(f"it has an input of the kind {printable(str(kind), 40)}")
    return tensors, users


def _tensors(members: Members, limit: int) -> dict[str, Tensor]:
    """Weights and constants by name, from raw bytes or, in older archives, torch.save files (safe loader).

    `limit` is the most bytes that they may take: several may share one member.
    """
    found: dict[str, Tensor] = {}
    for part in ("weights", "constants"):
        config = members.get(f"data/{part}/model_{part}_config.json")
        for name, entry in (read_json(config)["config"] if config is not None else {}).items():
            if pickled(entry):
                raise Beyond(f"{printable(name, 40)} is pickled")
            found[name] = _tensor(members[f"data/{part}/{entry['path_name']}"], entry)
            limit -= found[name].nbytes
            if limit < 0:
                raise TooLarge("its weights take many times the size of the file")
    for name in OLDER:
        content = members.get(name, b"")
        if content[:2] == b"PK":
            check_version("A program that an older torch exported")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            found.update((str(path), _dense(tensor, limit)) for path, tensor in loaded.items())
    return found


def _dense(tensor: Any, limit: int) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError("it keeps something else than plain tensors among its weights")
    if tensor.nbytes > limit:
        raise TooLarge("its weights take many times the size of the file")
    plain = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(plain, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else plain


def _tensor(content: bytes, entry: dict[str, Any]) -> Tensor:
    meta = entry["tensor_meta"]
    shape, strides = ([_whole(item) for item in meta[key]] for key in ("sizes", "strides"))
    dtype = DTYPES[meta["dtype"]]
    storage = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
    if math.prod(shape) > storage.numel():
        raise ValueError(f"a tensor of shape {tuple(shape)} is stored with {storage.numel()} numbers")
    offset = _whole(meta["storage_offset"])
    tensor = storage.as_strided(shape, strides, offset).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(tensor, meta["requires_grad"] and tensor.is_floating_point()) if entry["is_param"] else tensor


def _whole(size: dict[str, Any]) -> int:
    value = size["as_int"]
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"expected a whole number, got {str(value)[:40]!r}")
    return value
