"""Where the summary of a gate goes: files, standard output, GitHub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskaudit.command.output import parse_outputs, write_file
from maskaudit.errors import InputError, UsageError
from maskaudit.gate import page, summary
from maskaudit.gate.baselines import visible
from maskaudit.gate.merge import merged_junit, merged_sarif
from maskaudit.gate.running import GateOutcome, GateResult
from maskaudit.report import github
from maskaudit.results import dump_json

#: Files that `--out DIR` writes next to the sub-folders of the models, by format.
SUMMARY_FILES = {
    "md": "summary.md",
    "json": "summary.json",
    "html": "index.html",
    "junit": "junit.xml",
    "sarif": "maskaudit.sarif",
}

FORMATS: dict[str, Callable[[GateResult, dict[str, Any]], str]] = {
    "html": lambda result, data: page.html(data),
    "json": lambda result, data: dump_json(data),
    "md": lambda result, data: summary.markdown(data),
    "text": lambda result, data: summary.text(data),
    "sarif": lambda result, data: merged_sarif(result),
    "junit": lambda result, data: merged_junit(result),
}


def wanted_files(outputs: tuple[str, ...], out: Path | None, *, as_json: bool = False) -> list[tuple[str, Path]]:
    """(format, absolute path) pairs for `-o FORMAT=PATH` and `--out DIR`, checked before any work is done.

    Raises:
        UsageError: for an unknown format, a missing path, or `evidence`, which belongs to a single model.
        InputError: when a place cannot be written.
    """
    if any(item.partition("=")[0] == "evidence" for item in outputs):
        raise UsageError("The evidence belongs to a single model: --out DIR keeps it in each model's folder.")
    wanted = [(fmt, path.absolute()) for fmt, path in parse_outputs(outputs, None, as_json=as_json)]
    if out is not None:
        places = tuple(f"{fmt}={out.absolute() / name}" for fmt, name in SUMMARY_FILES.items())
        wanted = [*parse_outputs(places, None), *wanted]
    return wanted


def write_summaries(wanted: list[tuple[str, Path]], result: GateResult, data: dict[str, Any]) -> str:
    """Render and write every wanted file; one that cannot be written costs no other.

    Returns:
        Why one could not be written; empty when all were.
    """
    unwritten = ""
    for fmt, path in wanted:
        try:
            write_file(path, FORMATS[fmt](result, data).encode("utf-8", "replace"))
        except InputError as error:
            unwritten = unwritten or str(error)
    return unwritten


def audited(result: GateResult) -> list[github.Annotated]:
    """The outcomes for annotations: an accepted verdict or claim is none, and suppressed findings are left out."""
    return [_audited(outcome, str(result.config.file.absolute())) for outcome in result.outcomes]


def _audited(outcome: GateOutcome, file: str) -> github.Annotated:
    if outcome.document is None or outcome.ruling is None:
        return github.Annotated(outcome.entry.name, outcome.status, None, outcome.error, file)
    document = visible(outcome.document, outcome.ruling)
    document["verdict"]["label"] = outcome.ruling.label
    document["claim"]["status"] = outcome.ruling.claim
    return github.Annotated(outcome.entry.name, outcome.status, document, outcome.error, file)
