"""The file of finished runs: one JSON object a line, appended as each run ends, never rewritten."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]

#: Parts of the package that only show what was found: a change there is no reason to audit again.
RENDERERS = ("report", "gate")

Record = dict[str, Any]
Key = tuple[Any, ...]

#: What makes two runs the same run.
KEY_FIELDS = ("kind", "peer", "model", "weights", "seed", "budget", "points", "code")


def key_of(record: Mapping[str, Any]) -> Key:
    """What identifies a run; `code` is the digest of the sources that it ran on."""
    return tuple(record.get(field) for field in KEY_FIELDS)


class RecordFile:
    """Finished runs on disk.

    Args:
        path: the file; created with its first record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def read(self) -> list[Record]:
        """All records, oldest first; a last line that a crash cut off is left out.

        Raises:
            ValueError: when another line is no record.
        """
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        records = []
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number == len(lines):  # no newline behind it: its writer was stopped
                    break
                raise ValueError(f"Line {number} of {self.path} is no record; remove it: {error}") from error
        return records

    def append(self, record: Record) -> None:
        """Add one record; on disk when this returns, on a line of its own even after a cut-off one."""
        line = json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file():
                self._drop_cut_off_line()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())

    def _drop_cut_off_line(self) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            self.path.write_bytes(content[: content.rfind(b"\n") + 1])


def latest(records: Iterable[Record]) -> list[Record]:
    """The newest record of every run, whatever sources or weights it ran on."""
    newest: dict[Key, Record] = {}
    for record in records:
        name = tuple(record.get(field) for field in ("kind", "peer", "model", "seed", "budget"))
        newest.pop(name, None)
        newest[name] = record
    return list(newest.values())


def sources_digest(*folders: str) -> str:
    """Digest of all Python sources below `folders` (relative to the checkout), renderers left out."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT)
            if name.parts[0] == "maskaudit" and name.parts[1] in RENDERERS:
                continue
            digest.update(str(name).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def machine() -> str:
    """Where a run took place, in a few words."""
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread per run"
