"""From records to figures: counts with exact intervals, distances from the truth, costs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.records import Record
from maskaudit.verdict.statistics import clopper_pearson
from maskaudit.zoo.grade import BEST_KNOWN_TOLERANCE, Grade, grade
from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.truth import Truth

#: Rounding of shares.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Share:
    """So many hits among n; shown with its exact 99 % interval."""

    hits: int
    n: int

    @property
    def value(self) -> float | None:
        """The share, None of nothing."""
        return self.hits / self.n if self.n else None

    def __str__(self) -> str:
        if not self.n:
            return "–"
        low, high = clopper_pearson(self.hits, self.n)
        return f"{self.hits} of {self.n} ({low:.3f}–{high:.3f})"


@dataclass(frozen=True)
class Outcome:
    """One audit or one run of a peer, held against what is known of its model.

    Attributes:
        model, part, masked: as the zoo has it; seed: of the run.
        label: verdict of an audit; for a peer "masked" where it fired, "clear" where not, "" where it gave no sign
            or no answer.
        answered: whether it came to an end.
        distance: its robust accuracy less the established one on the same points; None where one is missing.
        below: points that it broke although they are certified robust.
        seconds, cpu_seconds: wall time and CPU time; passes: forwards and backwards, in points; None without answer.
        proof: whether all checks of `maskaudit verify` hold right after an audit.
        level, mechanism, any_mechanism, module, location, line: whether an audit named them rightly; None where
            the question does not apply, or was not asked.
    """

    model: str
    part: str
    masked: bool
    seed: int
    label: str
    answered: bool
    distance: float | None
    below: int
    seconds: float | None
    cpu_seconds: float | None
    passes: int | None
    proof: bool | None = None
    level: bool | None = None
    mechanism: bool | None = None
    any_mechanism: bool | None = None
    module: bool | None = None
    location: bool | None = None
    line: bool | None = None


def audit_outcome(record: Record, entry: ZooEntry, truth: Truth | None) -> Outcome:
    """An audit against its entry and the record of its truth."""
    if "document" not in record:
        return Outcome(record["model"], entry.part, entry.masked, record["seed"], "", False, None, 0, *_cost(record))
    document = record["document"]
    graded = grade(entry, truth, document)
    named = document["verdict"]["mechanisms"]
    asked = graded.mechanism is not None
    placed = asked and entry.module is not None
    right = [m for m in named if m["id"] in entry.mechanisms]
    return Outcome(
        record["model"], entry.part, entry.masked, record["seed"], document["verdict"]["label"],
        record["status"] == "ran", graded.distance, graded.certified_broken, *_cost(record),
        proof=not record["unproven"] if "unproven" in record else None,
        level=_level_right(entry, document) if graded.label and entry.masked else None,
        mechanism=graded.mechanism,
        any_mechanism=bool(right) if asked else None,
        module=any(p["module"] == entry.module for m in right for p in m["locations"]) if placed else None,
        location=graded.location,
        line=_line_right(entry, right, graded) if placed else None,
    )  # fmt: skip


def peer_outcome(
    record: Record, entry: ZooEntry, truth: Truth | None, *, detects: bool = True, without: Sequence[str] = ()
) -> Outcome:
    """A peer's run; `without` names indicators that are not to count."""
    ran = record["status"] == "ran"
    label = ""
    if ran and detects:
        fired = [name for name, on in record["indicators"].items() if on and name not in without]
        label = "masked" if fired else "clear"
    distance, below = _peer_distance(record, truth) if ran else (None, 0)
    return Outcome(
        record["model"], entry.part, entry.masked, record["seed"], label, ran, distance, below, *_cost(record)
    )


def _cost(record: Record) -> tuple[float | None, float | None, int | None]:
    passes = record["forwards"] + record["backwards"] if "forwards" in record else None
    return record.get("seconds"), record.get("cpu_seconds"), passes


def _level_right(entry: ZooEntry, document: Mapping[str, Any]) -> bool:
    rates = {level: document["masking"][f"{level}_level"]["value"] for level in ("gradient", "loss")}
    return max(rates, key=lambda level: rates[level]) == entry.level


def _line_right(entry: ZooEntry, right: Sequence[Mapping[str, Any]], graded: Grade) -> bool:
    """Whether the right place is given with file and line as well."""
    return bool(graded.location) and any(
        p["module"] == entry.module and (not entry.ops or p["op"] in entry.ops) and p["file"] and p["line"]
        for m in right
        for p in m["locations"]
    )


def _peer_distance(record: Record, truth: Truth | None) -> tuple[float | None, int]:
    """As `grade` does for an audit: on common points where the weights are the record's, else of the aggregates."""
    if truth is None or record.get("unbroken") is None:
        return None, 0
    unbroken = dict(zip(record["index"], record["unbroken"], strict=True))
    if record["weights"] != truth.weights:
        return sum(unbroken.values()) / len(unbroken) - truth.best_known, 0
    common = [point for point in truth.points if point in unbroken]
    if not common:
        return None, 0
    established, _ = truth.on(common)
    proven = [point for point, holds in zip(truth.points, truth.bits("certified"), strict=True) if holds]
    below = sum(not unbroken[point] for point in proven if point in unbroken)
    return sum(unbroken[point] for point in common) / len(common) - established, below


@dataclass(frozen=True)
class Summary:
    """Figures of one system over some runs; names as in `Outcome`."""

    sensitivity: Share
    false_clear: Share
    accused: Share
    specificity: Share
    suspect: Share
    inconclusive: Share
    undecided_healthy: Share
    unanswered: Share
    proof: Share
    level: Share
    mechanism: Share
    any_mechanism: Share
    module: Share
    location: Share
    line: Share
    within: Share
    worst: float | None
    below: int
    seconds: float | None
    cpu_seconds: float | None
    passes: float | None


def summarise(outcomes: Sequence[Outcome], *, detects: bool = True) -> Summary:
    """Count. A run without an answer accuses no model and finds nothing."""
    masked = [o for o in outcomes if o.masked and detects]
    healthy = [o for o in outcomes if not o.masked and detects]
    every = [*masked, *healthy]
    distances = [o.distance for o in outcomes if o.distance is not None]
    return Summary(
        sensitivity=_share(masked, lambda o: o.label == "masked"),
        false_clear=_share(masked, lambda o: o.label == "clear"),
        accused=_share(healthy, lambda o: o.label == "masked"),
        specificity=_share(healthy, lambda o: o.label != "masked"),
        suspect=_share(every, lambda o: o.label == "suspect"),
        inconclusive=_share(every, lambda o: o.label == "inconclusive"),
        undecided_healthy=_share(healthy, lambda o: o.label in ("suspect", "inconclusive")),
        unanswered=_share(outcomes, lambda o: not o.answered),
        proof=_named(outcomes, "proof"),
        level=_named(outcomes, "level"),
        mechanism=_named(outcomes, "mechanism"),
        any_mechanism=_named(outcomes, "any_mechanism"),
        module=_named(outcomes, "module"),
        location=_named(outcomes, "location"),
        line=_named(outcomes, "line"),
        within=Share(sum(d <= BEST_KNOWN_TOLERANCE + ROUNDING for d in distances), len(distances)),
        worst=max(distances, default=None),
        below=sum(o.below for o in outcomes),
        seconds=_middle(o.seconds for o in outcomes if o.answered),
        cpu_seconds=_middle(o.cpu_seconds for o in outcomes if o.answered),
        passes=_middle(o.passes for o in outcomes if o.answered),
    )


def _share(outcomes: Sequence[Outcome], holds: Callable[[Outcome], bool]) -> Share:
    return Share(sum(holds(o) for o in outcomes), len(outcomes))


def _named(outcomes: Sequence[Outcome], field: str) -> Share:
    asked = [value for o in outcomes if (value := getattr(o, field)) is not None]
    return Share(sum(asked), len(asked))


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
