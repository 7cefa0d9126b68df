"""The committed table of `verdict.py`, rendered from the records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.comparison import comparison
from benchmarks.economy import economy
from benchmarks.records import Record
from benchmarks.score import Outcome, Share, Summary, audit_outcome, summarise
from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.truth import Truth

#: Rows of the first table: title, and the field of `Summary`.
ROWS = (
    ("masked models called `masked` (sensitivity)", "sensitivity"),
    ("masked models called `clear`", "false_clear"),
    ("healthy models called `masked`", "accused"),
    ("healthy models not called `masked` (specificity)", "specificity"),
    ("healthy models called `suspect` or `inconclusive`", "undecided_healthy"),
    ("`suspect`, all models", "suspect"),
    ("`inconclusive`, all models", "inconclusive"),
    ("audits that failed or ran out of time", "unanswered"),
    ("the audit's own `verify` succeeds right after it", "proof"),
    ("level right, of those rightly called `masked`", "level"),
    ("leading mechanism right", "mechanism"),
    ("any of the named mechanisms right", "any_mechanism"),
    ("module of the culprit right", "module"),
    ("module and op right", "location"),
    ("module and op right, with file and line", "line"),
    ("best known accuracy at most 1 point above the truth", "within"),
)


@dataclass(frozen=True)
class Knowledge:
    """What the records are held against."""

    entries: Mapping[str, ZooEntry]
    truths: Mapping[str, Truth]


def render(records: Sequence[Record], known: Knowledge, *, budget: str, command: str, planned: int) -> str:
    """The whole document.

    Args:
        records: the newest record of every run, see `benchmarks.records.latest`.
        planned: audits that the command asks for, so that a part of a run is not taken for the whole.
    """
    audits = sorted((r for r in records if r["kind"] == "audit"), key=lambda r: _place(r, known))
    audited = {(r["model"], r["weights"]) for r in audits}  # a peer on other weights met another network
    peers = [r for r in records if r["kind"] == "peer" and (r["model"], r["weights"]) in audited]
    outcomes = [audit_outcome(r, known.entries[r["model"]], known.truths.get(r["model"])) for r in audits]
    lines = [f"# Verdicts on the zoo, budget {budget}", "", _head(audits, peers, command, planned), ""]
    lines += _summary(outcomes)
    if peers:
        lines += ["", *comparison(outcomes, peers, known.entries, known.truths)]
        section = economy(audits, peers, known.entries)
        lines += ["", *section] if section else []
    lines += ["", "## Every audit", "", *_audit_rows(audits, outcomes)]
    return "\n".join(lines) + "\n"


def _place(record: Record, known: Knowledge) -> tuple[int, int]:
    return list(known.entries).index(record["model"]), record["seed"]


def _head(audits: Sequence[Record], peers: Sequence[Record], command: str, planned: int) -> str:
    machines = sorted({r["machine"] for r in (*audits, *peers)})
    codes = sorted({r["code"] for r in audits})
    commits = sorted({r["commit"] for r in audits if r.get("commit")})
    sentences = [
        f"`{command}` on {'; '.join(machines)}. {len(audits)} of {planned} audits"
        + (f" and {len(peers)} runs of peers" if peers else "")
        + f"; sources of commit {', '.join(commits) or 'unknown'}.",
        "The seed changes the points drawn and the attacks; the networks stay the same. Seconds depend on the machine "
        "and on what else it does, passes (forwards and backwards, in points) do not. Intervals are exact, 99 %; "
        "seeds of one model are not independent, so they are narrower than they should be.",
    ]
    if len(codes) > 1:
        sentences.append("**The audits ran on different versions of the sources.**")
    if len(audits) < planned:
        sentences.append("**The run is not complete.**")
    return " ".join(sentences)


def _summary(outcomes: Sequence[Outcome]) -> list[str]:
    parts = {
        "all": list(outcomes),
        "tune part": [o for o in outcomes if o.part == "tune"],
        "check part": [o for o in outcomes if o.part == "check"],
    }
    columns = {name: summarise(part) for name, part in parts.items()}
    models = {name: len({o.model for o in part}) for name, part in parts.items()}
    lines = [
        "## Against the truth",
        "",
        "Constants were fitted on the tune part only. Where the truth is not established yet, a cell says –.",
        "",
        "| | " + " | ".join(f"{name} ({models[name]} models)" for name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    lines += [f"| {title} | " + _cells(columns, field) + " |" for title, field in ROWS]
    figures = (
        ("farthest above the truth", lambda s: number(s.worst, "+.3f")),
        ("certified points counted as broken", lambda s: str(s.below)),
        ("seconds per audit, median", lambda s: number(s.seconds, ".1f")),
        ("CPU seconds, median", lambda s: number(s.cpu_seconds, ".1f")),
        ("passes, median", lambda s: number(s.passes, ",.0f")),
    )
    lines += [f"| {title} | " + " | ".join(show(s) for s in columns.values()) + " |" for title, show in figures]
    return lines


def _cells(columns: Mapping[str, Summary], field: str) -> str:
    return " | ".join(str(share) for s in columns.values() if isinstance(share := getattr(s, field), Share))


def number(value: float | None, form: str) -> str:
    """A figure, or – where there is none."""
    return "–" if value is None else format(value, form)


def _mark(value: bool | None) -> str:
    return {True: "yes", False: "**no**", None: ""}[value]


def _audit_rows(audits: Sequence[Record], outcomes: Sequence[Outcome]) -> list[str]:
    lines = [
        "| model | part | truth | seed | verdict | mechanism | level | mechanism right | place right | reference "
        "| best known | above the truth | hidden: gradient | hidden: loss | points | forwards | backwards "
        "| s | CPU s |",
        "|---" * 19 + "|",
    ]
    for record, outcome in zip(audits, outcomes, strict=True):
        truth = "masked" if outcome.masked else "healthy"
        head = f"| {outcome.model} | {outcome.part} | {truth} | {outcome.seed} "
        if "document" not in record:
            lines.append(f"{head}| {record['status']}: {_plain(record['reason'])} |" + " |" * 14)
            continue
        document = record["document"]
        accuracy, masking = document["accuracy"], document["masking"]
        named = document["verdict"]["mechanisms"]
        right = outcome.label == ("masked" if outcome.masked else "clear")
        label = outcome.label if right else f"**{outcome.label}**"
        lines.append(
            f"{head}| {label} | {named[0]['id'] if named else ''} | {_mark(outcome.level)} "
            f"| {_mark(outcome.mechanism)} | {_mark(outcome.location)} | {accuracy['reference']['value']:.3f} "
            f"| {accuracy['best_known']['value']:.3f} | {number(outcome.distance, '+.3f')} "
            f"| {masking['gradient_level']['value']:.3f} | {masking['loss_level']['value']:.3f} "
            f"| {len(document['points']['index'])} | {record['forwards']} | {record['backwards']} "
            f"| {record['seconds']:.1f} | {record['cpu_seconds']:.1f} |"
        )
    return lines


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
