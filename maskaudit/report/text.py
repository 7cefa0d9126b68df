"""The report for a terminal: verdict, the two axes, attacks and findings, in at most 100 columns.

Nothing from the document can steer the terminal: its strings are stripped of
control characters when they are read (`maskaudit.report.coerce.text`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from maskaudit.report import records, view, words
from maskaudit.report.lines import WIDTH, columns, wrapped
from maskaudit.results import Rate

#: Columns of the names in front of facts.
_NAME = 17

_COLOURS = {"masked": "31", "suspect": "33", "clear": "32", "inconclusive": "36"}


def render(document: dict[str, Any], *, color: bool = False, file: str | None = "") -> str:
    """The report as plain text.

    Args:
        document: the parsed JSON report.
        color: whether to emphasise with ANSI sequences.
        file: where the JSON report lies, for the command that verifies it; None where its evidence was not written.

    Raises:
        InputError: when the document is not a report that this version can read.
    """
    report = view.read(document, file)
    style = _Style(color, _COLOURS[report.label])
    marked = [style.bold(line) for line in _wrapped(report.partial, "")] if report.partial else []
    lines = [*marked, *_verdict(report, style), "", *_axes(report, style)]
    if report.attacks:
        lines += ["", *_attacks(report, style)]
    if report.findings:
        lines += ["", *_findings(report, style)]
    if report.notes:
        notes = [line for note in report.notes for line in _wrapped(f"- {note}", "  ", hang=2)]
        lines += ["", style.bold("Notes"), *notes]
    if left := _left_out(report):
        lines += ["", style.bold("Did not run"), *left]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def brief(document: dict[str, Any]) -> str:
    """Verdict, reasons, mechanism, the two axes and the attacks: what a failed assertion shows.

    Raises:
        InputError: when the document is not a report that this version can read.
    """
    report = view.read(document)
    style = _Style(False, "")
    lines = [*_verdict(report, style), "", *_axes(report, style), "", *_attacks(report, style)]
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


class _Style:
    """ANSI emphasis, or none."""

    def __init__(self, color: bool, tone: str) -> None:
        self._color, self._tone = color, tone

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._color else text

    def verdict(self, text: str) -> str:
        return f"\x1b[1;{self._tone}m{text}\x1b[0m" if self._color else text

    def faint(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._color else text


def _verdict(report: records.View, style: _Style) -> list[str]:
    sentence = _wrapped(f"{report.label.upper()}  {report.sentence}", "")
    first = style.verdict(report.label.upper()) + sentence[0][len(report.label) :]
    reasons = [line for reason in report.reasons for line in _wrapped(f"- {reason}", "  ", hang=2)]
    return [first, *(style.bold(line) for line in sentence[1:]), *reasons]


def _axes(report: records.View, style: _Style) -> list[str]:
    causes = [
        f"{cause.title} ({cause.confidence} confidence)" + (f": {place}" if (place := _places(cause.places)) else "")
        for cause in report.mechanisms
    ]
    accuracy = report.accuracy
    best, reference = (words.rate(accuracy[key], "-") for key in ("best_known", "reference"))
    proven = accuracy["certified"]
    facts = [
        ("model", report.model),
        ("threat model", report.threat.replace("ε", "eps")),
        ("clean accuracy", words.rate(accuracy["clean"], "-") if accuracy["clean"] else "not measured"),
        ("gradient health", words.HEALTH[report.label].lower()),
        *(("  cause", cause) for cause in causes),
        ("  gradient level", _level(report.gradient_level, "hidden from the model's gradients")),
        ("  loss level", _level(report.loss_level, "hidden from attacks on cross-entropy")),
        (
            "robust accuracy",
            f"at most {best}; reference attack {reference}" if accuracy["best_known"] else "not measured",
        ),
        ("  certified", words.percent(proven.value) if proven else ""),
        ("claim", "" if report.claimed is None else f"{words.percent(report.claimed)}: {report.claim}"),
        ("power check", report.power),
        ("proof", _proof(report)),
        ("verify with", report.verify),
        ("time", words.seconds(report.seconds)),
        ("most memory", words.size(report.peak_memory)),
    ]
    return [line for name, value in facts if value for line in _fact(name, value, style)]


def _level(hidden: Rate | None, meaning: str) -> str:
    return f"{words.rate(hidden, '-')} {meaning}" if hidden else "not measured"


def _proof(report: records.View) -> str:
    if not report.evidence_count:
        return ""
    kept = f", examples in {report.evidence_file}" if report.evidence_file else "; --out DIR keeps the examples"
    return f"{words.plural(report.evidence_count, 'point')} broken{kept}"


def _attacks(report: records.View, style: _Style) -> list[str]:
    header = ("attack", "role", "robust accuracy", "broken", "queries", "time")
    rows = [
        (
            row.name[:34],
            words.ROLES[row.role][0].removesuffix(" gradient attacks").lower(),
            words.rate(row.accuracy, "-"),
            f"{row.broken}/{row.attempted}",
            f"{row.queries:,}",
            words.seconds(row.seconds),
        )
        for row in report.attacks_run
    ]
    return _table(header, rows, "llrrrr", style)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, style: _Style) -> list[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    head, *body = (columns(row, widths, align) for row in (header, *rows))
    return [style.bold(head), style.faint("-" * len(head)), *body]


def _findings(report: records.View, style: _Style) -> list[str]:
    lines = [style.bold(f"Findings ({len(report.findings)}, worst first)")]
    for rank, probe in enumerate(report.findings, start=1):
        span = words.interval(probe.share, "-") if probe.share else ""
        figure = words.joined((probe.figure, span and f"[{span}]", probe.limit and f"(limit {probe.limit})"), " ")
        lines += _wrapped(f"{rank}. {probe.title} ({probe.rule}): {figure}", "", hang=3)
        lines += _wrapped(probe.meaning, "   ") + _wrapped(probe.remedy and f"-> {probe.remedy}", "   ", hang=3)
        lines += [
            line
            for seen in probe.observations[:5]
            for line in _wrapped(words.joined((_at(seen.place), seen.message), ": "), "   - ", hang=5)
        ]
    return lines


def _at(place: records.Place) -> str:
    return f"at {place}" if str(place) else ""


def _left_out(report: records.View) -> list[str]:
    probes = records.by_reason(report.with_status("error", "not_applicable"))
    attacks = records.by_reason(report.attacks_not_run)
    named = [([probe.rule for probe in group], reason) for _, reason, group in probes]
    named += [([attack.name for attack in group], reason) for _, reason, group in attacks]
    entries = (f"{words.joined(names)}: {reason}" for names, reason in named)
    lines = [line for entry in entries for line in _wrapped(entry, "  ", hang=2)]
    if report.left_out:
        lines += _wrapped(f"left out on request: {words.joined(report.left_out)}", "  ", hang=2)
    return lines


def _places(places: Iterable[records.Place]) -> str:
    shown = [str(place) for place in places]
    more = f" and {len(shown) - 2} more" if len(shown) > 2 else ""
    return "; ".join(shown[:2]) + more


def _fact(name: str, value: str, style: _Style) -> list[str]:
    lines = wrapped(value, width=WIDTH - _NAME - 2)
    return [
        f"{style.faint(name.ljust(_NAME)) if i == 0 else ' ' * _NAME}  {line}" for i, line in enumerate(lines or [""])
    ]


def _wrapped(text: str, indent: str, hang: int = 0) -> list[str]:
    """`text` in lines below `WIDTH`, indented; further lines hang by `hang` spaces."""
    following = " " * (len(indent) + hang if indent.isspace() or not indent else hang)
    return wrapped(text, indent, following)
