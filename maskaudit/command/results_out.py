"""Deliver the result of an audit: files, terminal, GitHub, exit status. Reads the JSON report, loads no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from maskaudit.command import streams
from maskaudit.command.output import write_outputs
from maskaudit.command.status import UNWRITTEN_STATUS
from maskaudit.command.terminal import say, use_colour
from maskaudit.errors import MaskauditError, without_controls
from maskaudit.report import FORMATS, github, render, text


@dataclass(frozen=True)
class Asked:
    """Where the result of `maskaudit check` was asked to go.

    Attributes:
        model: as the user named it.
        wanted: (format, path) pairs of the files to write.
        as_json: print the report as one JSON document.
        fail_on: what fails the build.
        call_timeout: seconds that a call of the model may last; None adapts to the calls seen, 0 allows any time.
    """

    model: str
    wanted: tuple[tuple[str, str], ...]
    as_json: bool
    fail_on: str
    call_timeout: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, to send to another process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Asked:
        """The object from the plain data of `to_dict`."""
        return cls(**{**data, "wanted": tuple((fmt, path) for fmt, path in data["wanted"])})


def naming_its_evidence(document: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """The report with the name of the evidence file as it is written, next to the JSON report if there are several."""
    files = [Path(path) for fmt, path in asked.wanted if fmt == "evidence"]
    if not files or not document["evidence"]:
        return document
    reports = {Path(path).parent for fmt, path in asked.wanted if fmt == "json"}
    file = min(files, key=lambda one: one.parent not in reports)
    return {**document, "evidence": {**document["evidence"], "file": file.name}}


def write(asked: Asked, document: dict[str, Any], evidence: bytes | None) -> str:
    """Write the files; without evidence, those that are made from the report alone.

    Returns:
        Why one could not be written; empty when all are on the disk.
    """
    wanted = [(fmt, Path(path)) for fmt, path in asked.wanted if evidence is not None or fmt in FORMATS]
    try:
        write_outputs(wanted, document, evidence)
    except MaskauditError as error:
        return str(error)
    return ""


def show(asked: Asked, document: dict[str, Any], status: int, *, failure: str = "", unwritten: str = "") -> int:
    """Print the report, where it was written, and what went wrong.

    Args:
        failure: why the audit did not finish; unwritten: why a file could not be written.

    Returns:
        The exit status: the given one, but a success whose files could not be written is none.
    """
    out, err = streams.out(), streams.err()
    if asked.as_json:
        say(render(document, "json"), out)
    else:
        files = dict(reversed(asked.wanted))
        file = files.get("json", "") if "evidence" in files else None
        say(text.render(document, color=use_colour(out), file=file), out)
        written = "" if unwritten else "".join(f"{fmt:>9}: {path}\n" for fmt, path in asked.wanted)
        say(written, out)
    for problem in filter(None, (failure, unwritten)):
        say(f"maskaudit: {without_controls(problem)}\n", err)
    if unwritten and status == 0:
        status = UNWRITTEN_STATUS
    seen = [github.Annotated(asked.model, status, document, failure)]
    announce(seen, render(document, "md"), err if asked.as_json else out)
    return status


def announce(audits: Sequence[github.Annotated], markdown: str, stream: TextIO) -> None:
    """Annotations on `stream` and the step summary, where this is a step of GitHub Actions."""
    if github.in_actions():
        workspace = os.environ.get("GITHUB_WORKSPACE")
        for annotation in github.collect(audits, root=Path(workspace) if workspace else None):
            say(f"{annotation}\n", stream)
    github.append_summary(markdown)
