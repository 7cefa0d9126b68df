"""The peers next to the audit, on the same models and seeds, and in words where a peer is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers import PEERS, Peer
from benchmarks.records import Record
from benchmarks.score import Outcome, Share, Summary, peer_outcome, summarise
from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.truth import Truth

OURS = "maskaudit"

#: What each peer leaves undone: why a figure of it can be better.
SPARES = {
    "autoattack": "runs four attacks and stops; where white-box attacks break every point it is done at once, while an "
    "audit still probes, traces and proves the power of its search",
    "torchattacks-autoattack": "runs the same four attacks with a tenth of the gradient steps, and says nothing of "
    "masking",
    "attack-failure": "reads the trace of one PGD run: no accuracy, no cause, no example to verify",
    "gradient-alignment": "compares two gradients per point and attacks nothing: no accuracy, no cause, no example",
    "five-behaviours": "runs PGD and one short black-box search, gives no accuracy, and accuses honest models",
    "binarization": "tests one attack on 50 planted problems, and says nothing of the model itself",
}


@dataclass(frozen=True)
class Row:
    """One system in the table; `lenient` marks the second reading of a run that has a row already."""

    title: str
    summary: Summary
    lenient: bool = False
    peer: str = ""


@dataclass(frozen=True)
class Column:
    """A figure to compare: `higher` says which way is better, `value` is None where a system has no such figure.

    `detection` columns depend on how the indicators are read, the others do not.
    """

    title: str
    value: Callable[[Summary], float | None]
    show: Callable[[Summary], str]
    higher: bool
    detection: bool = False


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _share_column(title: str, field: str, *, higher: bool, detection: bool = False) -> Column:
    def share(summary: Summary) -> Share:
        found: Share = getattr(summary, field)
        return found

    return Column(title, lambda s: share(s).value, lambda s: str(share(s)), higher, detection)


COLUMNS = (
    _share_column("masked models found (sensitivity)", "sensitivity", higher=True, detection=True),
    _share_column("healthy models not accused (specificity)", "specificity", higher=True, detection=True),
    _share_column("no answer (crash, time limit)", "unanswered", higher=False),
    _share_column("mechanism right", "mechanism", higher=True),
    _share_column("place right", "location", higher=True),
    _share_column("accuracy at most 1 point above the truth", "within", higher=True),
    Column("farthest above the truth", lambda s: s.worst, lambda s: _figure(s.worst, "+.3f"), higher=False),
    Column("CPU s, median", lambda s: s.cpu_seconds, lambda s: _figure(s.cpu_seconds, ".1f"), higher=False),
    Column("seconds, median", lambda s: s.seconds, lambda s: _figure(s.seconds, ".1f"), higher=False),
    Column("passes, median", lambda s: s.passes, lambda s: _figure(s.passes, ",.0f"), higher=False),
)


def comparison(
    ours: Sequence[Outcome], records: Sequence[Record], entries: Mapping[str, ZooEntry], truths: Mapping[str, Truth]
) -> list[str]:
    """The section on peers: one table for all models, one for the check part, indicators, every run."""
    absent = {r["peer"]: r["reason"] for r in records if r["status"] == "unavailable"}
    records = [r for r in records if r["status"] != "unavailable"]
    met = {(r["model"], r["seed"]) for r in records}
    matched = [o for o in ours if (o.model, o.seed) in met]
    lines = [
        "## Next to peers",
        "",
        "Same models and seeds; a peer meets the points of the audit's first look, the audit goes on to more when its "
        "verdict asks for it. A run without an answer finds nothing and accuses no model. A dash: the peer has no such "
        "figure. Lenient: read without the indicators named there.",
    ]
    lines += [f"\n**{PEERS[name].title} did not run everywhere**: {reason}." for name, reason in absent.items()]
    for title, part in (("All models", ("tune", "check")), ("Check part only", ("check",))):
        rows = _rows([o for o in matched if o.part in part], records, entries, truths, part)
        if rows[0].summary.unanswered.n:
            lines += ["", f"### {title}", "", *_table(rows), "", better(rows)]
    lines += ["", "### Which indicator fired", "", *_indicators(records, entries)]
    return [*lines, "", "### Every run of a peer", "", *_matrix(matched, records, entries, truths)]


def _rows(
    ours: Sequence[Outcome], records: Sequence[Record], entries: Mapping[str, ZooEntry],
    truths: Mapping[str, Truth], part: Sequence[str],
) -> list[Row]:  # fmt: skip
    rows = [Row(OURS, summarise(ours))]
    for peer in PEERS.values():
        runs = [r for r in records if r["peer"] == peer.name and entries[r["model"]].part in part]
        if not runs:
            continue
        for title, without in _variants(peer):
            outcomes = [
                peer_outcome(r, entries[r["model"]], truths.get(r["model"]), detects=peer.detects, without=without)
                for r in runs
            ]
            rows.append(Row(title, summarise(outcomes, detects=peer.detects), lenient=bool(without), peer=peer.name))
    return rows


def _variants(peer: Peer) -> list[tuple[str, tuple[str, ...]]]:
    variants: list[tuple[str, tuple[str, ...]]] = [(peer.title, ())]
    if peer.lenient:
        variants.append((f"{peer.title}, lenient: without {', '.join(peer.lenient)}", peer.lenient))
    return variants


def _table(rows: Sequence[Row]) -> list[str]:
    lines = ["| | " + " | ".join(c.title for c in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    return lines + [f"| {row.title} | " + " | ".join(c.show(row.summary) for c in COLUMNS) + " |" for row in rows]


def better(rows: Sequence[Row]) -> str:
    """A paragraph that names each column in which a peer has a better figure than we have, and why it can."""
    sentences = []
    named: dict[str, str] = {}
    ours = rows[0].summary
    for column in COLUMNS:
        mine = column.value(ours)
        ahead = []
        for row in rows[1:]:
            theirs = column.value(row.summary)
            if mine is None or theirs is None or theirs == mine or (theirs > mine) != column.higher:
                continue
            if row.lenient and not column.detection:  # its cost is that of the row above
                continue
            ahead.append((theirs, f"{row.title} ({column.show(row.summary)})"))
            named.setdefault(row.peer, row.title)
        if ahead:
            best = sorted(ahead, key=lambda pair: pair[0], reverse=column.higher)
            sentences.append(f"*{column.title}*: {'; '.join(text for _, text in best)}; ours {column.show(ours)}.")
    if not sentences:
        return "No peer has a better figure than the audit in any column."
    reasons = "; ".join(f"{title} {SPARES[peer]}" for peer, title in named.items())
    return f"**Where a peer is better.** {' '.join(sentences)} **Why.** {reasons}."


def _indicators(records: Sequence[Record], entries: Mapping[str, ZooEntry]) -> list[str]:
    lines = ["| peer | indicator | fired on masked | fired on healthy |", "|---|---|---|---|"]
    for peer in PEERS.values():
        runs = [r for r in records if r["peer"] == peer.name and r["status"] == "ran"]
        names = dict.fromkeys(name for r in runs for name in r["indicators"])
        for name in names:
            cells = []
            for masked in (True, False):
                asked = [r for r in runs if entries[r["model"]].masked is masked]
                cells.append(str(Share(sum(r["indicators"].get(name, False) for r in asked), len(asked))))
            lines.append(f"| {peer.name} | {name} | {' | '.join(cells)} |")
    return lines


def _matrix(
    ours: Sequence[Outcome], records: Sequence[Record], entries: Mapping[str, ZooEntry], truths: Mapping[str, Truth]
) -> list[str]:
    """One row per model and seed; a cell says whether a peer fired, and its robust accuracy."""
    names = [name for name in PEERS if any(r["peer"] == name for r in records)]
    cells = {(r["model"], r["seed"], r["peer"]): _cell(r, PEERS[r["peer"]]) for r in records}
    labels = {(o.model, o.seed): o.label or "no answer" for o in ours}
    lines = [
        "Fired or not, and the accuracy that the peer leaves, scored as an audit scores its own.", "",
        "| model | truth | best known | seed | audit | " + " | ".join(names) + " |", "|---" * (len(names) + 5) + "|",
    ]  # fmt: skip
    for model in entries:
        best = _figure(truths[model].best_known if model in truths else None, ".3f")
        for seed in sorted({r["seed"] for r in records if r["model"] == model}):
            head = [model, "masked" if entries[model].masked else "healthy", best, str(seed)]
            row = [*head, labels.get((model, seed), "–"), *(cells.get((model, seed, name), "–") for name in names)]
            lines.append(f"| {' | '.join(row)} |")
    return lines


def _cell(record: Record, peer: Peer) -> str:
    if record["status"] != "ran":
        reason = record["reason"].replace("|", "/")
        return f"{record['status']}: {reason}"
    parts = []
    if peer.detects:
        parts.append("fired" if any(record["indicators"].values()) else "quiet")
    if record["unbroken"]:
        parts.append(f"{sum(record['unbroken']) / len(record['unbroken']):.3f}")
    return " ".join(parts)
