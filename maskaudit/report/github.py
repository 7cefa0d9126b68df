"""GitHub Actions: annotations at file and line, and the step summary.

Annotations are workflow commands, which the runner reads from the output of a step;
they are few (GitHub shows ten of a kind for a step), worst first, and escaped so that
no string of a report can form a command of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskaudit.errors import InputError
from maskaudit.report import coerce, records, view, words

#: Annotations of one run: what GitHub shows for a step.
MAX_ANNOTATIONS = 10

#: Size that GitHub allows a step summary, in bytes.
SUMMARY_LIMIT = 1024 * 1024

_LEVELS = ("error", "warning", "notice")


@dataclass(frozen=True)
class Annotated:
    """One audit for the annotations: its name, exit status, report (None if there is none), and why it failed."""

    name: str
    status: int
    document: dict[str, Any] | None = None
    error: str = ""
    file: str = ""


@dataclass(frozen=True)
class Annotation:
    """One workflow command: `level` is error, warning or notice."""

    level: str
    message: str
    title: str = ""
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        fields = [
            ("file", self.file),
            ("line", str(self.line) if self.file and self.line else ""),
            ("title", self.title),
        ]
        properties = ",".join(f"{name}={escape_property(value)}" for name, value in fields if value)
        return f"::{self.level}{' ' if properties else ''}{properties}::{escape_data(self.message)}"


def escape_data(text: str) -> str:
    """The message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """The value of a property of a workflow command."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


def in_actions(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process is a step of GitHub Actions."""
    return (os.environ if environment is None else environment).get("GITHUB_ACTIONS") == "true"


def collect(audits: Sequence[Annotated], *, root: Path | None = None) -> list[Annotation]:
    """What deserves an annotation, worst first, at most `MAX_ANNOTATIONS`.

    Args:
        audits: the audits of this run; their reports without what a baseline accepts.
        root: the checkout, to which files are made relative.
    """
    found = [annotation for audit in audits for annotation in _annotations(audit, root)]
    found.sort(key=lambda annotation: _LEVELS.index(annotation.level))
    if len(found) > MAX_ANNOTATIONS:
        more = len(found) - MAX_ANNOTATIONS + 1
        found[MAX_ANNOTATIONS - 1 :] = [Annotation("notice", f"{more} more in the report.", "maskaudit")]
    return found


def append_summary(markdown: str, environment: Mapping[str, str] | None = None) -> bool:
    """Append to the step summary where the runner offers one; cut at the size that GitHub accepts.

    Returns:
        Whether there was one.

    Raises:
        InputError: when its file cannot be written.
    """
    place = (os.environ if environment is None else environment).get("GITHUB_STEP_SUMMARY")
    if not place:
        return False
    content = (markdown.rstrip("\n") + "\n\n").encode("utf-8", "replace")
    try:
        with open(place, "ab") as file:
            content = content[: max(0, SUMMARY_LIMIT - file.tell())]
            file.write(content.decode("utf-8", "ignore").encode())
    except OSError as error:
        raise InputError(f"The step summary {place} cannot be written: {error.strerror or error}.") from error
    return True


def _annotations(audit: Annotated, root: Path | None) -> Iterable[Annotation]:
    whole = records.Place(file=audit.file)
    name = coerce.text(audit.name, "model")
    if audit.document is None or audit.error:
        yield _at("error", coerce.text(audit.error, "not audited"), f"maskaudit: {name}", whole, root)
    if audit.document is None:
        return
    report = view.read(audit.document)
    title = f"maskaudit: {name}: {report.label}"
    if report.label in ("masked", "suspect"):
        level = "notice" if audit.status == 0 else "error" if report.label == "masked" else "warning"
        places = [place for mechanism in report.mechanisms for place in mechanism.places if place.file]
        for place in places or [whole]:
            yield _at(level, report.sentence, title, place, root)
        yield from _findings(report, root) if audit.status != 0 else ()
    elif report.label == "inconclusive":
        yield _at("notice" if audit.status == 0 else "warning", report.sentence, title, whole, root)
    if report.claim == "refuted" and report.claimed is not None:
        best = words.rate(report.accuracy["best_known"])
        message = f"Claimed robust accuracy {words.percent(report.claimed)} is refuted: at most {best} found."
        yield _at("notice" if audit.status == 0 else "error", message, f"maskaudit: {name}", whole, root)


def _findings(report: records.View, root: Path | None) -> Iterable[Annotation]:
    """Findings of probes at a known file; the others are in the report."""
    for probe in report.findings:
        for seen in probe.observations:
            if seen.place.file:
                message = words.joined((probe.title, seen.message), ": ")
                yield _at("warning", message, f"maskaudit: {probe.rule}", seen.place, root)


def _at(level: str, message: str, title: str, place: records.Place, root: Path | None) -> Annotation:
    return Annotation(level, message, title, _relative(place.file, root), place.line)


def _relative(file: str, root: Path | None) -> str:
    """A file as GitHub names it: relative to the checkout where it lies inside."""
    if root is None or not Path(file).is_absolute():
        return file
    try:
        return Path(file).relative_to(root).as_posix()
    except ValueError:
        return file
