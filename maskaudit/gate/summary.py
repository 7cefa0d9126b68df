"""The summary of a gate as data, and as text and Markdown; both read the data and nothing else."""

from __future__ import annotations

from typing import Any

from maskaudit import __version__
from maskaudit.command.status import BUG_STATUS
from maskaudit.gate.running import GateOutcome, GateResult
from maskaudit.report import coerce, view, words
from maskaudit.report.lines import WIDTH, columns, wrapped
from maskaudit.report.markdown import code, escape
from maskaudit.results import plain

SCHEMA_VERSION = 1

#: What a status says about a model's build.
STATUS_WORDS = {
    0: "pass",
    1: "FAIL",
    2: "NOT AUDITED",
    3: "INCONCLUSIVE",
    4: "MODEL FAILED",
    BUG_STATUS: "MASKAUDIT FAILED",
}

#: The fewest columns that a name in the table of the text is cut to.
_NAME = 12

#: Verdicts, worst first.
_LABELS = ("masked", "suspect", "inconclusive", "clear")

#: Columns of the table in every format.
HEADER = ("model", "threat", "verdict", "robust accuracy", "claim", "gate")


def build(result: GateResult) -> dict[str, Any]:
    """The summary as a JSON document (schema version 1)."""
    models = [_model(outcome) for outcome in result.outcomes]
    labels = [model["verdict"] for model in models]
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "gate",
        "tool": {"name": "maskaudit", "version": __version__},
        "config": str(result.config.file),
        "status": result.status,
        "verdict": next((label for label in _LABELS if label in labels), None),
        "models": models,
        "notes": list(result.notes),
    }
    return dict(plain(document))


def _model(outcome: GateOutcome) -> dict[str, Any]:
    entry, document = outcome.entry, outcome.document
    head = {
        "name": entry.name,
        "model": entry.request.model,
        "status": outcome.status,
        "fail_on": entry.fail_on,
        "error": outcome.error,
        "report": f"{outcome.folder}/audit.json" if outcome.folder else None,
        "cached": outcome.cached,
    }
    empty: dict[str, Any] = {
        "verdict": None,
        "sentence": "",
        "reasons": [],
        "threat": {},
        "accuracy": {},
        "findings": [],
    }
    if document is None or outcome.ruling is None:
        return {**head, **empty, "claim": {"claimed": entry.request.settings.claim, "status": None}}
    report = view.read(document)
    return {
        **head,
        "verdict": report.label,
        "sentence": report.sentence,
        "reasons": list(report.reasons),
        "threat": document["threat"],
        "claim": document["claim"],
        "accuracy": document["accuracy"],
        "findings": [
            {
                "kind": finding.kind, "rule": finding.rule, "module": finding.module, "op": finding.op,
                "cause": finding.cause, "message": finding.message,
                "accepted": None if baseline is None else {
                    "baseline": baseline.number, "reason": baseline.reason, "expires": baseline.expires.isoformat(),
                },
            }
            for finding, baseline in outcome.ruling.findings
        ],
    }  # fmt: skip


def text(summary: dict[str, Any], *, color: bool = False) -> str:
    """The table, then what is wrong with each model that does not pass, in at most 100 columns."""
    rows = [row(model) for model in summary["models"]]
    widths = [max(len(row[i]) for row in (HEADER, *rows)) for i in range(len(HEADER))]
    widths[0] = min(widths[0], max(_NAME, WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    lines = [_line(HEADER, widths), "-" * (sum(widths) + 2 * (len(widths) - 1))]
    lines += [
        _toned(_line(row, widths), model["status"], color) for row, model in zip(rows, summary["models"], strict=True)
    ]
    for model in summary["models"]:
        lines += _details(model)
    if found := notes(summary):
        lines += ["", *(line for note in found for line in wrapped(f"note: {note}", "", "      "))]
    passed = sum(model["status"] == 0 for model in summary["models"])
    lines += [
        "",
        f"{passed} of {words.plural(len(rows), 'model passes', 'models pass')}; exit status {summary['status']}",
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def markdown(summary: dict[str, Any]) -> str:
    """The summary as GitHub-flavoured Markdown, for a step summary or a comment."""
    state = "passed" if summary["status"] == 0 else "did not pass"
    lines = [
        f"## maskaudit gate {state}",
        "",
        "| " + " | ".join(name.capitalize() for name in HEADER) + " |",
        "|" + " --- |" * len(HEADER),
    ]
    for model in summary["models"]:
        name, *cells, gate = row(model)
        marked = escape(gate) if model["status"] == 0 else f"**{escape(gate)}**"
        lines.append("| " + " | ".join([code(name), *map(escape, cells), marked]) + " |")
    for model in summary["models"]:
        if reasons := sentences(model):
            lines += ["", f"### {code(coerce.text(model['name']))}", "", *(f"- {escape(line)}" for line in reasons)]
    if found := notes(summary):
        lines += ["", "### Baselines", "", *(f"- {escape(note)}" for note in found)]
    return "\n".join(lines) + "\n"


def row(model: dict[str, Any]) -> tuple[str, ...]:
    """Cells of a model's row in the table."""
    claim, threat = model["claim"], model["threat"]
    claimed, eps = coerce.number(claim.get("claimed")), coerce.number(threat.get("eps"))
    status = words.CLAIM.get(str(claim.get("status")), "")
    ball = words.joined((coerce.text(threat.get("norm")), words.radius(eps).partition(" (")[0]), " ")
    accepted = any(finding["accepted"] and finding["kind"] != "probe" for finding in model["findings"])
    return (
        coerce.text(model["name"]),
        "-" if eps is None else ball,
        model["verdict"] or "-",
        words.rate(coerce.rate(model["accuracy"].get("best_known")), "-", missing="-"),
        "-" if claimed is None else words.joined((words.percent(claimed), status), " "),
        "accepted" if accepted and model["status"] == 0 else STATUS_WORDS[model["status"]],
    )


def sentences(model: dict[str, Any]) -> list[str]:
    """Why a model does not pass, and what was accepted for it."""
    lines = []
    if model["error"]:
        lines.append(coerce.text(model["error"]))
    if model["status"] != 0 and model["verdict"] is not None:
        lines += [model["sentence"], *model["reasons"]]
        claim = model["claim"]
        if claim.get("status") == "refuted":
            best = words.rate(coerce.rate(model["accuracy"].get("best_known")), "-")
            lines.append(f"Claimed robust accuracy {words.percent(claim['claimed'])}, at most {best} found: refuted.")
    return lines + _accepted(model)


def _accepted(model: dict[str, Any]) -> list[str]:
    """One line per baseline that accepts something."""
    rules: dict[tuple[int, str, str], list[str]] = {}
    for finding in model["findings"]:
        if by := finding["accepted"]:
            rules.setdefault((by["baseline"], by["expires"], by["reason"]), []).append(finding["rule"])
    return [
        f"{words.joined(dict.fromkeys(names))}: accepted by baseline {number} until {expires}: {coerce.text(reason)}"
        for (number, expires, reason), names in rules.items()
    ]


def notes(summary: dict[str, Any]) -> list[str]:
    """What the user should change about the baselines, one line each."""
    return [coerce.text(note) for note in summary["notes"]]


def _details(model: dict[str, Any]) -> list[str]:
    reasons = sentences(model)
    if not reasons:
        return []
    head = wrapped(f"{coerce.text(model['name'])}: {reasons[0]}", "", "  ")
    return ["", *head, *(line for item in reasons[1:] for line in wrapped(f"- {item}", "  ", "    "))]


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    fitting = [c if len(c) <= width else c[: width - 3] + "..." for c, width in zip(cells, widths, strict=True)]
    return columns(fitting, widths)


def _toned(line: str, status: int, color: bool) -> str:
    tone = {0: "32", 3: "36"}.get(status, "31")
    return f"\x1b[{tone}m{line}\x1b[0m" if color else line
