"""Hold an audit of a zoo model against what is known of it. Pure: reads the report and the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.truth import Truth

#: Best known accuracy may lie this far above the established one, as a share of points.
BEST_KNOWN_TOLERANCE = 0.01
#: Rounding of shares.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Grade:
    """How an audit fares; None where a question does not apply (no culprit to name, no record).

    Attributes:
        label: the verdict is the truth.
        mechanism: the leading mechanism is one that names the cause rightly.
        location: a mechanism that names the cause rightly points to the culprit.
        distance: best known accuracy of the audit less the established one, on the same points.
        compared: number of those points.
        certified_broken: points that the audit broke although they are certified robust.
    """

    label: bool
    mechanism: bool | None
    location: bool | None
    distance: float | None
    compared: int
    certified_broken: int

    @property
    def wrong(self) -> tuple[str, ...]:
        """What is wrong, as words; empty when all is right."""
        conditions = {
            "label": not self.label,
            "mechanism": self.mechanism is False,
            "location": self.location is False,
            "best known": self.distance is not None and self.distance > BEST_KNOWN_TOLERANCE + _ROUNDING,
            "certificate": self.certified_broken > 0,
        }
        return tuple(name for name, holds in conditions.items() if holds)


def expected_label(entry: ZooEntry) -> str:
    """The verdict that is the truth."""
    return "masked" if entry.masked else "clear"


def grade(entry: ZooEntry, truth: Truth | None, document: Mapping[str, Any]) -> Grade:
    """Grade one report (JSON form) of an audit of `entry`.

    Mechanism and location are asked only of an audit that rightly says `masked`.
    """
    label = document["verdict"]["label"] == expected_label(entry)
    named = document["verdict"]["mechanisms"]
    asked = label and entry.masked and bool(entry.mechanisms)
    distance, compared, certified_broken = _best_known(truth, document)
    return Grade(
        label=label,
        mechanism=bool(named) and named[0]["id"] in entry.mechanisms if asked else None,
        location=_located(entry, named) if asked and entry.module is not None else None,
        distance=distance,
        compared=compared,
        certified_broken=certified_broken,
    )


def _located(entry: ZooEntry, mechanisms: list[dict[str, Any]]) -> bool:
    return any(
        place["module"] == entry.module and (not entry.ops or place["op"] in entry.ops)
        for mechanism in mechanisms
        if mechanism["id"] in entry.mechanisms
        for place in mechanism["locations"]
    )


def _best_known(truth: Truth | None, document: Mapping[str, Any]) -> tuple[float | None, int, int]:
    """Distance, number of points compared, and certified points that were broken.

    Point by point where the weights are those of the record; else the two aggregates are compared, which differ
    by chance as well.
    """
    if truth is None:
        return None, 0, 0
    points = document["points"]
    if document["target"]["sha256"] != truth.weights:
        return document["accuracy"]["best_known"]["value"] - truth.best_known, 0, 0
    unbroken = {
        point: bool(correct and not broken)
        for point, correct, broken in zip(points["index"], points["correct"], points["broken_by"], strict=True)
    }
    common = [point for point in truth.points if point in unbroken]
    if not common:
        return None, 0, 0
    established, _ = truth.on(common)
    proven = [point for point, holds in zip(truth.points, truth.bits("certified"), strict=True) if holds]
    broken = sum(not unbroken[point] for point in proven if point in unbroken)
    return sum(unbroken[point] for point in common) / len(common) - established, len(common), broken
