"""The per-point matrix: which attack broke which point, points hidden from gradients or loss first.

One row per attack, one column per point, columns sorted so that the two kinds of
masking form blocks. A strip of a thousand points is a path of a few
hundred bytes, since equal neighbours are drawn as one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from maskaudit.report import coerce, words
from maskaudit.report.records import AttackView, View

#: Most points and attacks that are drawn, and hidden points that are listed one by one.
MAX_POINTS = 5000
_MAX_ATTACKS = 40
MAX_LISTED = 40
#: Bytes of all strips: beyond, points are left out of the drawing.
_MAX_BYTES = 150_000

#: Groups of points in the order of the columns: key, heading, what it means.
GROUPS = (
    ("gradient", "Hidden at gradient level", "only attacks that do not trust the model's gradients break them"),
    ("loss", "Hidden at loss level", "white-box attacks break them, but not through cross-entropy"),
    ("plain", "Broken by the usual loss", "white-box attacks on cross-entropy break them"),
    ("found", "Broken", "no white-box attack ran, so that neither level is compared"),
    ("other", "Broken by a second opinion only", "by none of the families that the verdict compares"),
    ("unbroken", "Unbroken", "no attack broke them"),
    ("wrong", "Wrong without an attack", "not attacked"),
)

#: Roles by what they say about a hidden point.
_WHITE_BOX, _CHALLENGING = ("reference", "strong"), ("challenger", "repaired")


@dataclass(frozen=True)
class Group:
    """Consecutive columns of one kind."""

    key: str
    title: str
    meaning: str
    start: int
    count: int


@dataclass(frozen=True)
class MatrixRow:
    """One attack: `path` is the drawing of the columns that it broke."""

    name: str
    title: str
    role: str
    broken: int
    path: Markup


@dataclass(frozen=True)
class HiddenPoint:
    """One hidden point, in words."""

    index: str
    label: str
    level: str
    broken_by: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """The whole figure; `left_out` counts points that are not drawn."""

    points: int
    groups: tuple[Group, ...]
    rows: tuple[MatrixRow, ...]
    listed: tuple[HiddenPoint, ...]
    left_out: int

    @property
    def hidden(self) -> int:
        """Points hidden at either level."""
        return sum(group.count for group in self.groups if group.key in ("gradient", "loss"))

    @property
    def summary(self) -> str:
        """The figure in words."""
        counts = ", ".join(f"{group.count:,} {group.title[0].lower()}{group.title[1:]}" for group in self.groups)
        return f"{self.points:,} points: {counts}."


@dataclass(frozen=True)
class _Point:
    index: str
    label: str
    group: int
    broken_by: frozenset[str]


def follows_cross_entropy(row: AttackView) -> bool:
    """Whether a white-box attack follows untargeted cross-entropy."""
    return row.role in _WHITE_BOX and row.family == "cross_entropy"


def read(document: dict[str, Any], view: View) -> Matrix | None:
    """The matrix of the document's points, or None where points or attacks are missing."""
    section = coerce.mapping(document["points"])
    broken_by = coerce.items(section.get("broken_by"))
    attacks = {row.name: row for row in view.attacks_run if row.role != "sanity"}
    named = {name for names in broken_by[:MAX_POINTS] for name in _names(names)}
    shown = [row for row in attacks.values() if row.name in named or row.attempted][:_MAX_ATTACKS]
    if not broken_by or not shown:
        return None
    points = _points(section, broken_by, attacks)
    order = [row.name for row in shown]
    points.sort(key=lambda p: (p.group, [name not in p.broken_by for name in order]))
    while points and sum(map(len, _paths(points, order))) > _MAX_BYTES:
        points = points[: len(points) // 2]
    counts = Counter(name for point in points for name in point.broken_by)
    paths = _paths(points, order)
    return Matrix(
        points=len(points),
        groups=_groups(points),
        rows=tuple(
            MatrixRow(row.name, row.title, row.role, counts[row.name], path)
            for row, path in zip(shown, paths, strict=True)
        ),
        listed=tuple(_hidden(point) for point in points[:MAX_LISTED] if point.group < 2),
        left_out=len(broken_by) - len(points),
    )


def _points(section: dict[str, Any], broken_by: list[Any], attacks: dict[str, AttackView]) -> list[_Point]:
    index, label, correct = (coerce.items(section.get(key)) for key in ("index", "label", "correct"))
    white_box = frozenset(name for name, row in attacks.items() if row.role in _WHITE_BOX)
    usual = frozenset(name for name, row in attacks.items() if follows_cross_entropy(row))
    challenging = frozenset(name for name, row in attacks.items() if row.role in _CHALLENGING)
    keys = [key for key, *_ in GROUPS]
    points = []
    for i, names in enumerate(broken_by[:MAX_POINTS]):
        broken = _names(names) & attacks.keys()
        if i < len(correct) and correct[i] is False:
            kind = "wrong"
        elif broken & usual:
            kind = "plain"
        elif broken and not white_box:
            kind = "found"
        elif broken & white_box:
            kind = "loss"
        elif broken & challenging:
            kind = "gradient"
        else:
            kind = "other" if broken else "unbroken"
        cells = [coerce.text(column[i], "?") if i < len(column) else "?" for column in (index, label)]
        points.append(_Point(cells[0], cells[1], keys.index(kind), broken))
    return points


def _names(value: Any) -> frozenset[str]:
    return frozenset(coerce.texts(coerce.items(value)[: 2 * _MAX_ATTACKS]))


def _groups(points: list[_Point]) -> tuple[Group, ...]:
    result, start = [], 0
    for number, members in groupby(points, key=lambda point: point.group):
        count = len(list(members))
        result.append(Group(*GROUPS[number], start, count))
        start += count
    return tuple(result)


def _paths(points: list[_Point], order: list[str]) -> list[Markup]:
    """For each attack a path of rectangles of height 1, runs of broken points drawn as one."""
    paths = []
    for name in order:
        drawn, start = [], 0
        for broken, run in groupby(points, key=lambda point: name in point.broken_by):
            length = len(list(run))
            if broken:
                drawn.append(f"M{start} 0h{length}v1h-{length}z")
            start += length
        paths.append(Markup("".join(drawn)))
    return paths


def _hidden(point: _Point) -> HiddenPoint:
    return HiddenPoint(point.index, point.label, GROUPS[point.group][1], tuple(sorted(point.broken_by)))


def caption(matrix: Matrix) -> str:
    """What to see in the figure."""
    if matrix.hidden:
        return (
            f"{words.plural(matrix.hidden, 'tinted column')} on the left: hidden points, broken by some attack "
            "but by no white-box attack on cross-entropy."
        )
    if any(group.key == "found" for group in matrix.groups):
        return "The attacks that broke each point."
    return "No point is hidden: white-box attacks on cross-entropy broke all that any other attack broke."
