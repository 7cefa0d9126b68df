"""A digest of everything that a piece of work depends on, so that its result is used again for nothing else."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit import __version__
from maskaudit.loading.interface import state_digest
from maskaudit.target import Target

#: What makes a target answer as it does, besides its model.
TARGET_SETTINGS = ("bounds", "mean", "std", "form", "draws", "reject_class", "batch_size", "seed")


class IndescribableError(TypeError):
    """Something whose content cannot be determined, such as a function made at run time: its results are not kept."""


def content_digest(*values: Any) -> str:
    """SHA-256 over the content of plain values, tensors, modules, targets, dataclasses and module-level functions.

    Raises:
        IndescribableError: for anything else.
    """
    digest = hashlib.sha256()
    for part in _parts(values):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


@functools.cache
def program_digest() -> str:
    """SHA-256 over the sources of this package."""
    root = Path(__file__).parents[1]
    sources = sorted(root.rglob("*.py"))
    return content_digest([(path.relative_to(root).as_posix(), path.read_bytes()) for path in sources])


@functools.cache
def machine() -> dict[str, str]:
    """What results depend on besides what is asked: program, torch, and what it uses of the processor."""
    return {
        "maskaudit": f"{__version__} {program_digest()[:12]}",
        "torch": str(torch.__version__),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _parts(value: Any) -> Iterator[bytes]:
    """The content of a value in pieces, each begun by its kind."""
    if value is None or isinstance(value, (str, bool, int, float)):
        yield f"{type(value).__name__} {json.dumps(value)}".encode()
    elif isinstance(value, bytes):
        yield b"bytes"
        yield value
    elif isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        yield f"map {len(value)}".encode()
        yield from (part for name in sorted(value, key=_order) for part in _parts((name, value[name])))
    elif isinstance(value, (set, frozenset)):
        yield from _parts(("set", sorted(value, key=_order)))
    elif isinstance(value, (list, tuple)):
        yield f"list {len(value)}".encode()
        yield from (part for item in value for part in _parts(item))
    else:
        yield from _parts_of_object(value)


def _parts_of_object(value: Any) -> Iterator[bytes]:
    if isinstance(value, nn.Module):
        yield f"module {_name(type(value))} {value} {state_digest(value)}".encode(errors="surrogatepass")
    elif isinstance(value, Target):
        yield b"target"
        yield from _parts((value.model, {name: getattr(value, name) for name in TARGET_SETTINGS}))
    elif isinstance(value, functools.partial):
        yield b"partial"
        yield from _parts((value.func, value.args, value.keywords))
    elif isinstance(value, (FunctionType, type)):
        yield f"function {_name(value)}".encode()
    elif dataclasses.is_dataclass(value):
        yield f"record {_name(type(value))}".encode()
        yield from _parts({item.name: getattr(value, item.name) for item in dataclasses.fields(value)})
    else:
        raise IndescribableError(f"{type(value).__name__} cannot be described")


def _name(thing: Callable[..., Any]) -> str:
    """Where a function or class is found.

    Raises:
        IndescribableError: when it was made at run time, so that its name says nothing of what it does.
    """
    if "<" in thing.__qualname__:
        raise IndescribableError(f"{thing.__qualname__} was made at run time")
    return f"{thing.__module__}:{thing.__qualname__}"


def _order(name: Any) -> str:
    return name if isinstance(name, str) else repr(name)
