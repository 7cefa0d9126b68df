"""The journal: finished attacks on disk, so that an interrupted audit resumes where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from maskaudit.attacks.interface import Attempt
from maskaudit.errors import InputError
from maskaudit.files import write_atomically

JOURNAL_FOLDER = ".journal"


class Journal:
    """One folder of attempts, valid for one fingerprint of model, data, threat model and settings.

    Args:
        folder: where it lives, usually `<out>/.journal`.
        fingerprint: plain data that must be equal for an attempt to be reused.
        resume: whether to reuse what is there; otherwise it is cleared.

    Raises:
        InputError: when the folder cannot be written, or belongs to another audit although `resume` is asked.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], *, resume: bool) -> None:
        self.folder = folder
        digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True, default=str).encode()).hexdigest()
        stamp = folder / "fingerprint"
        try:
            if resume and stamp.is_file() and stamp.read_text() != digest:
                raise InputError(
                    f"The audit in {folder.parent} was started with another model, data or settings: "
                    "run it with the same command, or without --resume to start afresh."
                )
            if folder.is_dir() and not (resume and stamp.is_file()):  # without a stamp, nobody knows whose it is
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            stamp.write_text(digest)
        except OSError as error:
            raise InputError(f"The folder {folder.parent} cannot be written: {error.strerror or error}.") from error

    def read(self, key: str, rows: Tensor) -> Attempt | None:
        """A finished attempt on the same points `rows`, or None."""
        try:
            tensors = load(self._path(key).read_bytes())
            if not rows.equal(tensors["rows"]):
                return None
            return Attempt(tensors["examples"], tensors["first_success"], tensors["queries"])
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, key: str, rows: Tensor, attempt: Attempt) -> None:
        """Keep a finished attempt; atomic, so that a crash leaves the old state or the new one.

        A disk that is full costs the possibility to resume, never the audit.
        """
        tensors = {
            "rows": rows.contiguous(),
            "examples": attempt.examples.contiguous(),
            "first_success": attempt.first_success.contiguous(),
            "queries": attempt.queries.contiguous(),
        }
        with contextlib.suppress(OSError):
            write_atomically(self._path(key), save(tensors))

    def _path(self, key: str) -> Path:
        return self.folder / (re.sub(r"[^A-Za-z0-9._-]", "_", key) + ".safetensors")
