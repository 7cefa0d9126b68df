"""The journal: finished work on disk, so that an interrupted audit resumes where it stopped.

An entry holds what one attack or probe brought, what it cost, and a digest of everything that it depends on: settings,
points, surrogates, stage of the plan and more (`maskaudit.auditing.digest`). It is used again for the same content
only, so a resumed audit ends in the report that it would have written without a break; seconds are those that the work
really took.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from maskaudit.errors import InputError
from maskaudit.files import write_atomically
from maskaudit.target import PassLedger

JOURNAL_FOLDER = ".journal"
#: How files of entries end: 32 bytes of SHA-256, then safetensors.
SUFFIX = ".entry"
#: The tensor of an entry that holds, as JSON, what is no tensor.
_RECORD = "record"


@dataclass(frozen=True)
class Kept:
    """Finished work: its tensors by name, plain data with them, and the passes and seconds that it took."""

    tensors: Mapping[str, Tensor]
    spent: PassLedger
    seconds: float
    plain: dict[str, Any] = field(default_factory=dict)


class Journal:
    """One folder of finished work, of one audit.

    Args:
        folder: where it lives, usually `<out>/.journal`.
        fingerprint: what must be equal for the audit to be the same one: by the name that people know it by, a text
            or number that they can tell apart.
        resume: whether to reuse what is there; otherwise it is cleared.

    Raises:
        InputError: when the folder cannot be written, or belongs to another audit although `resume` is asked; the
            message names what differs.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, str | int | float | None], *, resume: bool) -> None:
        self.folder = folder
        stamp = folder / "fingerprint"
        try:
            if resume and stamp.is_file():
                self._refuse_another(stamp.read_bytes(), fingerprint)
            if folder.is_dir() and not (resume and stamp.is_file()):  # without a stamp, it is unknown whose it is
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(stamp, json.dumps(dict(fingerprint), indent=1).encode())
        except OSError as error:
            raise InputError(f"The folder {folder.parent} cannot be written: {error.strerror or error}.") from error

    def _refuse_another(self, text: bytes, fingerprint: Mapping[str, str | int | float | None]) -> None:
        try:
            before = json.loads(text)
        except (ValueError, RecursionError):
            before = None
        if before == dict(fingerprint):
            return
        known = before if isinstance(before, dict) else {}
        changed = [name for name in fingerprint if known.get(name) != fingerprint[name]]
        differences = "; ".join(
            f"{name} differs: {_shown(known, name)} then, {fingerprint[name]} now" for name in changed
        )
        raise InputError(
            f"The audit in {self.folder.parent} was started with another model, data or settings ({differences}): "
            "run it with the same command, or without --resume to start over."
        )

    def read(self, key: str, content: str) -> Kept | None:
        """Finished work of this name and content (see `maskaudit.auditing.digest`); None without, or where damaged."""
        try:
            tensors = load(unsealed(self._path(key).read_bytes()))
            record = json.loads(tensors.pop(_RECORD).numpy().tobytes())
            if record["content"] != content:
                return None
            spent = PassLedger(int(record["forwards"]), int(record["backwards"]))
            return Kept(tensors, spent, float(record["seconds"]), dict(record["plain"]))
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, OverflowError, RecursionError):
            return None

    def write(self, key: str, content: str, kept: Kept) -> None:
        """Keep finished work; atomic, so that a crash leaves the old state or the new one.

        A disk that is full costs the possibility to resume, never the audit.
        """
        record = {
            "content": content, "forwards": kept.spent.forwards, "backwards": kept.spent.backwards,
            "seconds": kept.seconds, "plain": kept.plain,
        }  # fmt: skip
        tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in kept.tensors.items()}
        tensors[_RECORD] = torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)
        with contextlib.suppress(OSError):
            write_atomically(self._path(key), sealed(save(tensors)))

    def _path(self, key: str) -> Path:
        return self.folder / (re.sub(r"[^A-Za-z0-9._-]", "_", key) + SUFFIX)


def sealed(content: bytes) -> bytes:
    """An entry as it lies on the disk: its SHA-256 goes before it, so that damage is noticed."""
    return hashlib.sha256(content).digest() + content


def unsealed(stored: bytes) -> bytes:
    """The entry again.

    Raises:
        ValueError: when it is not what was written.
    """
    size = hashlib.sha256().digest_size
    if sealed(stored[size:]) != stored:
        raise ValueError("The entry is damaged.")
    return stored[size:]


def _shown(known: Mapping[str, Any], name: str) -> str:
    """A value of an earlier fingerprint; the file may hold anything."""
    value = known.get(name, "unknown")
    return str(value)[:200] if isinstance(value, (str, int, float)) or value is None else "unreadable"
