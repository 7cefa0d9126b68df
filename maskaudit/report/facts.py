"""What was audited and how to repeat it, as named facts; values that were defaults are marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from maskaudit.report import coerce, words

#: Most columns of a table that are listed, and what the document says of each.
MAX_COLUMNS = 24
_COLUMN = ("low", "width", "scale", "step")


@dataclass(frozen=True)
class Fact:
    """One named value; `code` marks what is typed or compared character by character."""

    name: str
    value: str
    default: bool = False
    code: bool = False


@dataclass(frozen=True)
class FactGroup:
    """Facts of the report under one heading."""

    title: str
    facts: tuple[Fact, ...]


#: Settings that have a place of their own in the report.
_PLACED = frozenset({"command", "defaults", "data", "samples", "norm", "eps", "bounds", "fail_on", "claim", "left_out"})

_NAMES = {
    "alpha": "Error level α", "std": "Standard deviation", "cpus": "CPUs", "torch": "torch",
    "looks": "Looks, at these numbers of points", "draws": "Draws per answer",
}  # fmt: skip


def audited(
    target: dict[str, Any], threat: dict[str, Any], settings: dict[str, Any], accuracy: dict[str, Any]
) -> tuple[FactGroup, ...]:
    """Model, data, threat model and search."""
    defaults = frozenset(coerce.texts(settings.get("defaults")))
    clean = coerce.rate(accuracy.get("clean"))
    parameters = coerce.integer(target.get("parameters"))
    model = (
        Fact("Model", coerce.text(target.get("source")), code=True),
        Fact("Name", coerce.text(target.get("name"))),
        Fact("Format", coerce.text(target.get("format"))),
        Fact("Architecture", coerce.text(target.get("arch")) or coerce.text(target.get("architecture")), code=True),
        Fact("Parameters", "" if parameters is None else f"{parameters:,}"),
        Fact("Outputs", coerce.text(target.get("outputs")), "outputs" in defaults),
        Fact("Random answers", coerce.text(target.get("random"))),
        Fact("SHA-256", coerce.text(target.get("sha256")), code=True),
        Fact("Notes", words.joined(coerce.texts(target.get("notes")), " ")),
    )
    bounds = [coerce.number(bound) for bound in coerce.items(threat.get("bounds"))]
    data = (
        Fact("Data", coerce.text(settings.get("data")), "data" in defaults, code=True),
        Fact("Points drawn", f"{clean.n:,}" if clean and clean.n else "", "samples" in defaults),
        Fact("Clean accuracy", words.rate(clean, missing="")),
        Fact("Norm", coerce.text(threat.get("norm")), "norm" in defaults),
        Fact("Radius ε", words.radius(coerce.number(threat.get("eps"))), "eps" in defaults),
        Fact("Bounds", " to ".join("?" if b is None else words.number(b) for b in bounds), "bounds" in defaults),
    )
    search = tuple(
        Fact(_name(key), _value(value), key in defaults) for key, value in settings.items() if key not in _PLACED
    )
    features = tuple(_features(coerce.mapping(threat.get("features")), coerce.number(threat.get("eps"))))
    groups = (
        FactGroup("Model", model),
        FactGroup("Data and threat model", data),
        FactGroup("Search", search),
        FactGroup("What each column may be", features),
    )
    return tuple(
        FactGroup(group.title, shown)
        for group in groups
        if (shown := tuple(fact for fact in group.facts if fact.value))
    )


def _features(features: dict[str, Any], eps: float | None) -> Iterator[Fact]:
    """What each column of a table may be and by how much it may change, in its own unit."""
    numbers = ([coerce.number(item) for item in coerce.items(features.get(key))] for key in _COLUMN)
    rows = [row for row in zip(*numbers, strict=False) if None not in row]
    one_of = {coerce.count(column): coerce.items(group) for group in coerce.items(features.get("groups"))
              for column in coerce.items(group)}  # fmt: skip
    for column, (low, width, scale, step) in enumerate(rows[:MAX_COLUMNS]):
        if not scale:
            allowed = "never changed"
        elif column in one_of:
            allowed = f"one category with columns {words.joined(map(coerce.text, one_of[column]))}"
        else:
            radius = words.number((eps or 0.0) * scale * width)
            whole = "whole number, " if step else ""
            allowed = f"{whole}{words.number(low)} to {words.number(low + width)}, changed by at most {radius}"
        yield Fact(f"Column {column}", allowed)
    if len(rows) > MAX_COLUMNS:
        yield Fact("Further columns", f"{len(rows) - MAX_COLUMNS:,}, in the JSON report")


def reproduction(document: dict[str, Any]) -> tuple[Fact, ...]:
    """Versions, seed and hashes that a repetition needs."""
    tool, target = coerce.mapping(document["tool"]), coerce.mapping(document["target"])
    settings, evidence = coerce.mapping(document["settings"]), coerce.mapping(document["evidence"])
    environment, timing = coerce.mapping(document["environment"]), coerce.mapping(document.get("timing"))
    facts = [
        Fact("Seed", coerce.text(settings.get("seed"))),
        Fact("maskaudit", coerce.text(tool.get("version"))),
        *(Fact(_name(key), _value(value)) for key, value in environment.items()),
        Fact("Model, SHA-256", coerce.text(target.get("sha256")), code=True),
        Fact("Evidence, SHA-256", coerce.text(evidence.get("sha256")), code=True),
        Fact("Passes of single points", _passes(timing)),
        Fact("Time", words.seconds(coerce.number(timing.get("total_seconds")))),
        Fact("Most memory", words.size(coerce.number(timing.get("peak_memory")))),
    ]
    return tuple(fact for fact in facts if fact.value)


def _passes(timing: dict[str, Any]) -> str:
    """What the audit cost, and a repetition will, in passes through the model."""
    counts = ((coerce.integer(timing.get(key)), key) for key in ("forwards", "backwards"))
    return words.joined(f"{count:,} {name.removesuffix('s')}" for count, name in counts if count is not None)


def _name(key: str) -> str:
    words_for_it = coerce.text(key).replace("_", " ")
    return _NAMES.get(key, words_for_it[:1].upper() + words_for_it[1:])


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return words.joined(map(_value, value))
    if isinstance(value, dict):
        return words.joined(f"{coerce.text(key)} {_value(item)}" for key, item in value.items())
    return coerce.text(value)
