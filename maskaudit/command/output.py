"""Write reports to disk; a file is either the old one or whole."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from maskaudit.command import streams
from maskaudit.command.terminal import say
from maskaudit.errors import InputError, UsageError, printable
from maskaudit.files import is_folder, sync_folder, write_atomically
from maskaudit.report import FORMATS, render
from maskaudit.results import EVIDENCE_FILE, dump_json

#: Files that `--out DIR` writes, by format.
DIRECTORY_FILES = {
    "html": "report.html",
    "json": "audit.json",
    "md": "summary.md",
    "plan": "plan.json",
    "evidence": EVIDENCE_FILE,
}

#: Where Linux names the open descriptors of a process.
_DESCRIPTORS = re.compile(r"/proc/\d+(/task/\d+)?/fd")


def parse_outputs(
    outputs: tuple[str, ...],
    out: str | None,
    *,
    formats: Collection[str] = (*FORMATS, "evidence", "plan"),
    files: Mapping[str, str] = DIRECTORY_FILES,
    as_json: bool = False,
) -> list[tuple[str, Path]]:
    """(format, path) pairs for `-o FORMAT=PATH` options and `--out DIR`, checked before any work is done.

    Args:
        formats: formats that `-o` takes; files: what `--out DIR` writes, by format.
        as_json: standard output gets one JSON document, and nothing else.

    Raises:
        UsageError: for an unknown format or a missing path, and for standard output where it does not fit.
        InputError: when a place cannot be written.
    """
    wanted: list[tuple[str, Path]] = []
    if out is not None:
        wanted += [(fmt, Path(out) / name) for fmt, name in files.items()]
    for item in outputs:
        fmt, equals, path = item.partition("=")
        if fmt not in formats or not equals or not path:
            raise UsageError(f"-o takes FORMAT=PATH with a format out of {', '.join(formats)}; got {item!r}.")
        wanted.append((fmt, Path(path)))
    for fmt, place in wanted:
        stream = _standard_stream(place)
        if stream is not None and fmt == "evidence":
            raise UsageError(f"The evidence is not text for {place}; give it a file.")
        if stream is streams.out() and as_json:
            raise UsageError(f"With --json standard output is one document: leave out -o {fmt}={place}, or --json.")
        check_writable(place)
    return wanted


def write_outputs(wanted: list[tuple[str, Path]], document: dict[str, Any], evidence: bytes | None) -> None:
    """Render and write every wanted file; what this returns from is on the disk.

    A file that cannot be written costs no other.

    Raises:
        UsageError: when evidence is wanted and there is none (re-rendering an old report).
        InputError: when a file cannot be written.
    """
    write_all(wanted, lambda fmt: _content(document, fmt, evidence))


def write_all(wanted: Sequence[tuple[str, Path]], content: Callable[[str], bytes]) -> None:
    """As `write_outputs`, with the content of each format.

    Raises:
        InputError: when a file cannot be written.
    """
    failures = []
    for fmt, path in wanted:
        try:
            write_file(path, content(fmt))
        except InputError as error:
            failures.append(error)
    for folder in {path.parent for _, path in wanted}:
        sync_folder(folder)
    if failures:
        raise failures[0]


def _content(document: dict[str, Any], fmt: str, evidence: bytes | None) -> bytes:
    if fmt == "evidence":
        if evidence is None:
            raise UsageError("A report alone does not contain the evidence; copy the evidence file instead.")
        return evidence
    if fmt == "plan":
        from maskaudit.repairs.plan_file import plan_document  # loads torch, which the other formats do without

        return dump_json(plan_document(document)).encode("utf-8")
    return render(document, fmt).encode("utf-8")


def write_file(path: Path, content: bytes) -> None:
    """Write atomically: a temporary file in the same folder, then a rename; a device or pipe is written to as it is."""
    stream = _standard_stream(path)
    if stream is not None:
        say(content.decode("utf-8", "replace"), stream)
        return
    with _as_unwritable(path):
        if is_special(path):
            path.write_bytes(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


@contextlib.contextmanager
def _as_unwritable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{printable(str(path))} cannot be written: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def check_writable(path: Path) -> None:
    """Fail before the audit rather than after it."""
    if is_special(path):
        return
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"The folder {printable(str(folder))} cannot be made: {_reason(error)}.") from error
    if is_folder(path):
        raise InputError(f"{path} is a folder; give the name of a file.")
    with _as_unwritable(path), contextlib.suppress(FileNotFoundError):
        path.lstat()
    if not os.access(folder, os.W_OK):
        raise InputError(f"The folder {folder} cannot be written to; choose another one.")


def is_special(path: Path) -> bool:
    """Whether this is a device, a pipe or an open descriptor, which a rename would replace by a file."""
    with contextlib.suppress(OSError, ValueError):
        if _standard_stream(path) is not None or _DESCRIPTORS.fullmatch(os.path.realpath(path.parent)):
            return True
        return path.exists() and not path.is_file() and not path.is_dir()
    return False


def _standard_stream(path: Path) -> TextIO | None:
    """Standard output or error, where a path names it; descriptor 1 of supervised work belongs to foreign code."""
    streams_of = {"stdout": streams.out, "fd/1": streams.out, "stderr": streams.err, "fd/2": streams.err}
    for name, stream in streams_of.items():
        if str(path) in (f"/dev/{name}", f"/proc/self/{name}"):
            return stream()
    return None
