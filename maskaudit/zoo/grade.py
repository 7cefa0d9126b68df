"""Hold an audit of a zoo model against what is known of it. Pure: reads the report and the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskaudit.verdict.statistics import binomial_tail
from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.truth import Truth

#: Best known accuracy may lie this far above the established one, as a share of all points.
BEST_KNOWN_TOLERANCE = 0.01
#: An audit that saw few of them is wrong only where so many would be left less often than this by chance.
CHANCE = 0.01


@dataclass(frozen=True)
class Grade:
    """How an audit fares; None where a question does not apply (no culprit to name, no record).

    Attributes:
        label: the verdict is the truth.
        mechanism: the leading mechanism is one that names the cause rightly.
        location: a mechanism that names the cause rightly points to the culprit.
        distance: best known accuracy of the audit less the established one, on the same points.
        compared: number of those points.
        chance: how likely it is that so many points or more are left, if the share of all points that is left exceeds
            the established one by `BEST_KNOWN_TOLERANCE`; 1 where nothing is known.
        certified_broken: points that the audit broke although they are certified robust.
    """

    label: bool
    mechanism: bool | None
    location: bool | None
    distance: float | None
    compared: int
    chance: float
    certified_broken: int

    @property
    def wrong(self) -> tuple[str, ...]:
        """What is wrong, as words; empty when all is right."""
        conditions = {
            "label": not self.label,
            "mechanism": self.mechanism is False,
            "location": self.location is False,
            "best known": self.chance < CHANCE,
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
    distance, compared, chance, certified_broken = _best_known(truth, document)
    return Grade(
        label=label,
        mechanism=bool(named) and named[0]["id"] in entry.mechanisms if asked else None,
        location=_located(entry, named) if asked and entry.module is not None else None,
        distance=distance,
        compared=compared,
        chance=chance,
        certified_broken=certified_broken,
    )


def _located(entry: ZooEntry, mechanisms: list[dict[str, Any]]) -> bool:
    return any(
        place["module"] == entry.module and (not entry.ops or place["op"] in entry.ops)
        for mechanism in mechanisms
        if mechanism["id"] in entry.mechanisms
        for place in mechanism["locations"]
    )


def _best_known(truth: Truth | None, document: Mapping[str, Any]) -> tuple[float | None, int, float, int]:
    """Distance, number of points compared, chance of such a distance, and certified points that were broken.

    Point by point where the weights are those of the record; else the two aggregates are compared, which differ
    by chance as well.
    """
    if truth is None:
        return None, 0, 1.0, 0
    points = document["points"]
    unbroken = {
        point: bool(correct and not broken)
        for point, correct, broken in zip(points["index"], points["correct"], points["broken_by"], strict=True)
    }
    if document["target"]["sha256"] != truth.weights:
        left, usual = sum(unbroken.values()), truth.best_known
        chance = binomial_tail(left, len(unbroken), min(1.0, usual + BEST_KNOWN_TOLERANCE))
        return left / max(1, len(unbroken)) - usual, 0, chance, 0
    common = [point for point in truth.points if point in unbroken]
    if not common:
        return None, 0, 1.0, 0
    established, n = truth.on(common)
    proven = [point for point, holds in zip(truth.points, truth.bits("certified"), strict=True) if holds]
    broken = sum(not unbroken[point] for point in proven if point in unbroken)
    more = sum(unbroken[point] for point in common) - round(established * n)
    return more / n, n, binomial_tail(more, n, BEST_KNOWN_TOLERANCE), broken
