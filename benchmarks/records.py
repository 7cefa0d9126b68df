"""The file of finished runs: one JSON object a line, appended as each run ends, never rewritten.

It stays on the machine that ran them. What was committed of it lies in `records.zip`, under the same name, and is read
first: `python benchmarks/records.py NAME.jsonl …` moves the newest record of every run of these files in there.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]

#: The committed records of all benchmarks.
ARCHIVE = ROOT / "benchmarks" / "records.zip"

#: The rooms of the package that decide verdicts: a record is of older sources once the code of one of these has
#: changed. The others read files, take commands, show what was found, only say how an audit is asked for, or train: of
#: networks the record names the weights.
DECIDING = (
    "attacks", "auditing", "bounds", "data", "networks", "probes", "repairs", "settings", "target", "trace", "verdict",
    "zoo", "rng.py", "sums.py", "threat",
)  # fmt: skip
#: What of these rooms decides nothing: figures of the report, the file of examples, what a killed audit goes on from,
#: and clusters, on which no record is made.
UNDECIDING = (
    "maskaudit/auditing/figures.py", "maskaudit/auditing/evidence_file.py", "maskaudit/auditing/journal.py",
    "maskaudit/auditing/digest.py", "maskaudit/auditing/engine/ray.py", "maskaudit/auditing/engine/ray_heartbeat.py",
    "maskaudit/auditing/engine/ray_messages.py", "maskaudit/auditing/engine/ray_node.py",
)  # fmt: skip

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
        return [*archived(self.path.name), *self._own()]

    def _own(self) -> list[Record]:
        """The records that are not in the archive."""
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
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file():
                self._drop_cut_off_line()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())

    def _drop_cut_off_line(self) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            self.path.write_bytes(content[: content.rfind(b"\n") + 1])


def archived(name: str) -> list[Record]:
    """The committed records of a file; none where nothing was committed under its name."""
    if not ARCHIVE.is_file():
        return []
    with zipfile.ZipFile(ARCHIVE) as archive:
        if name not in archive.namelist():
            return []
        return [json.loads(line) for line in archive.read(name).decode().splitlines()]


def archive(paths: Sequence[Path]) -> None:
    """Put the newest record of every run in these files into the archive, and remove the files."""
    kept: dict[str, str] = {}
    if ARCHIVE.is_file():
        with zipfile.ZipFile(ARCHIVE) as before:
            kept = {name: before.read(name).decode() for name in before.namelist()}
    for path in paths:
        kept[path.name] = "".join(_line(record) for record in latest(RecordFile(path).read()))
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_LZMA) as after:
        for name, content in sorted(kept.items()):
            after.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_LZMA)  # without the time: the same bytes again
    for path in paths:
        path.unlink(missing_ok=True)


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def latest(records: Iterable[Record]) -> list[Record]:
    """The newest record of every run, whatever sources or weights it ran on; without a kind each is a run.

    One that failed, ran out of time or lacked something takes the place of none that gave a result.
    """
    newest: dict[Key, Record] = {}
    for record in records:
        name = tuple(record.get(field) for field in ("kind", "peer", "model", "seed", "budget"))
        name = name if "kind" in record else (len(newest),)
        if name in newest and _has_result(newest[name]) and not _has_result(record):
            continue
        newest.pop(name, None)
        newest[name] = record
    return list(newest.values())


def _has_result(record: Record) -> bool:
    return record.get("status") not in ("failed", "timeout", "unavailable")


def sources_digest(*places: str, but: Sequence[str] = ()) -> str:
    """Digest of the code of Python files, and of all below folders, relative to the checkout; `but` some files.

    Comments, docstrings and layout do not count. Another version of Python, which may read the same code as another
    tree, has another digest, and no record from before (commit 65642655 digested bytes) has one that is given now: such
    records are of other sources, shown and not taken for those of today.
    """
    digest = hashlib.sha256()
    for place in places:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            if name not in but:
                digest.update(f"{name}\0{_code(file.read_bytes())}\0".encode())
    return digest.hexdigest()[:12]


def _code(source: bytes) -> str:
    """What Python makes of a file, without the texts that stand alone in it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def commit() -> str:
    """The commit that the sources are of, with a `+` where they were changed since; "" outside a checkout."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def figures_of(commits: Iterable[str | None]) -> str:
    """The sentence of a table that names the commits which its figures were measured on."""
    known = list(dict.fromkeys(commit for commit in commits if commit))
    return f"Figures of commit{'s' if len(known) > 1 else ''} {', '.join(known) or 'unknown'}."


def machine() -> str:
    """Where a run took place, in a few words."""
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread per run"


if __name__ == "__main__":
    archive([Path(name) for name in sys.argv[1:]])
