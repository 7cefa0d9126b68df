"""What changed between two audits: verdict, claim, settings, accuracies, probes and attacks.

Where both audits drew the same points, differences are paired, point by point: McNemar's
exact test (1947) on the points that only one model loses, with Holm's correction (1979)
over the attacks. Where they drew others, shares are compared by Fisher's exact test.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scipy import stats

from maskaudit.errors import InputError
from maskaudit.files import is_folder
from maskaudit.report import coerce, view, words
from maskaudit.report.lines import columns, wrapped
from maskaudit.report.reading import read_report
from maskaudit.report.records import View
from maskaudit.verdict.statistics import holm, mcnemar

SCHEMA_VERSION = 1
#: Letters of a figure of a probe, of which a line shows two.
_FIGURE = 22

#: Settings of an audit that do not change what is measured.
_INCIDENTAL = ("command", "defaults", "fail_on", "batch_size", "samples", "looks", "data", "split", "input_shape")

Document = dict[str, Any]


def compare_files(first: Path, second: Path) -> Document:
    """Compare two audit.json files (or the folders they are in).

    Raises:
        InputError: when one cannot be read, or they are over different data.
    """
    paths = [path / "audit.json" if is_folder(path) else path for path in (first, second)]
    return compare(*(read_report(path) for path in paths), names=(str(paths[0]), str(paths[1])))


def compare(first: Document, second: Document, *, names: tuple[str, str] = ("A", "B")) -> Document:
    """The differences of two reports as a JSON document (schema version 1).

    Raises:
        InputError: when the reports are over different data, or one of them cannot be read.
    """
    a, b = view.read(first), view.read(second)
    _check_same_data(first, second)
    lost = _Lost(first), _Lost(second)
    common = _common(*lost)
    notes = _notes(first, second, a, b, common, lost)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "comparison",
        "a": _head(names[0], a, first),
        "b": _head(names[1], b, second),
        "points": {
            "common": len(common),
            "only_a": len(lost[0].all) - len(common),
            "only_b": len(lost[1].all) - len(common),
        },
        "paired": bool(common),
        "settings": _settings(first, second),
        "mechanisms": {
            "gone": [m.id for m in a.mechanisms if m.id not in {other.id for other in b.mechanisms}],
            "new": [m.id for m in b.mechanisms if m.id not in {other.id for other in a.mechanisms}],
        },
        "accuracy": _accuracy(first, second),
        "best_known": _test(common, lost, None) if common else _unpaired(a.accuracy, b.accuracy),
        "attacks": _attacks(a, b, common, lost),
        "probes": _probes(a, b),
        "notes": notes,
    }


class _Lost:
    """Which drawn points a model loses: wrongly classified without an attack, or broken."""

    def __init__(self, document: Document) -> None:
        points = coerce.mapping(document["points"])
        index, labels = coerce.items(points.get("index")), coerce.items(points.get("label"))
        broken, correct = coerce.items(points.get("broken_by")), coerce.items(points.get("correct"))
        correct = correct or [True] * len(index)
        if len({len(index), len(labels), len(broken), len(correct)}) != 1:
            raise InputError("The points section of a report is damaged: its lists differ in length.")
        numbers = [coerce.integer(number) for number in index]
        if None in numbers or len(set(numbers)) != len(numbers):
            raise InputError("The points section of a report is damaged: its index must hold different whole numbers.")
        self.label = dict(zip(numbers, labels, strict=True))
        self.wrong = {number for number, right in zip(numbers, correct, strict=True) if right is not True}
        self.by = {number: set(coerce.texts(by)) for number, by in zip(numbers, broken, strict=True)}
        self.right = len(numbers) - len(self.wrong)

    @property
    def all(self) -> set[int | None]:
        """The drawn points."""
        return set(self.label)

    def to(self, attack: str | None) -> set[int | None]:
        """Points lost to an attack, or to any where it is None."""
        return self.wrong | {n for n, by in self.by.items() if (by if attack is None else attack in by)}


def _check_same_data(first: Document, second: Document) -> None:
    both = [coerce.mapping(document["settings"]) for document in (first, second)]
    for key, what in (("data", "data"), ("split", "split"), ("input_shape", "input shape")):
        one, other = both[0].get(key), both[1].get(key)
        if one is not None and other is not None and one != other:
            raise InputError(
                f"The two audits are over different data ({what}: {_short(one)} and {_short(other)}): "
                "only audits of the same data can be compared."
            )


def _common(first: _Lost, second: _Lost) -> list[int | None]:
    common = sorted(n for n in first.all & second.all if n is not None)
    if any(first.label[n] != second.label[n] for n in common):
        raise InputError(
            "The two audits are over different data: the same points have other labels, although the source has "
            "the same name. Only audits of the same data can be compared."
        )
    return list(common)


def _head(name: str, report: View, document: Document) -> Document:
    return {
        "file": coerce.text(name),
        "model": report.model,
        "verdict": report.label,
        "sentence": report.sentence,
        "claim": {"claimed": report.claimed, "status": coerce.text(coerce.mapping(document["claim"]).get("status"))},
        "points": len(coerce.items(coerce.mapping(document["points"]).get("index"))),
    }


def _settings(first: Document, second: Document) -> list[Document]:
    """Settings and threat model that differ."""
    changed = []
    for section in ("threat", "settings"):
        one, other = coerce.mapping(first[section]), coerce.mapping(second[section])
        for key in dict.fromkeys((*one, *other)):
            if key not in _INCIDENTAL and one.get(key) != other.get(key):
                changed.append({"name": key, "a": one.get(key), "b": other.get(key)})
    one, other = coerce.mapping(first["tool"]), coerce.mapping(second["tool"])
    if one.get("version") != other.get("version"):
        changed.append({"name": "maskaudit", "a": one.get("version"), "b": other.get("version")})
    return changed


def _accuracy(first: Document, second: Document) -> Document:
    one, other = coerce.mapping(first["accuracy"]), coerce.mapping(second["accuracy"])
    return {
        key: {"a": _rate(one.get(key)), "b": _rate(other.get(key))}
        for key, _, _ in words.ACCURACY
        if coerce.rate(one.get(key)) or coerce.rate(other.get(key))
    }


def _rate(value: Any) -> Document | None:
    found = coerce.rate(value)
    return asdict(found) if found else None


def _test(common: Iterable[int | None], lost: tuple[_Lost, _Lost], attack: str | None) -> Document:
    """Points that only one of the models loses, and McNemar's exact two-sided p-value."""
    points = set(common)
    a, b = (one.to(attack) & points for one in lost)
    only_a, only_b = len(a - b), len(b - a)
    p = min(1.0, 2 * min(mcnemar(only_a, only_b), mcnemar(only_b, only_a)))
    n = len(points)
    return {
        "test": "mcnemar", "n": n, "a": 1 - len(a) / n, "b": 1 - len(b) / n,
        "lost_only_by_a": only_a, "lost_only_by_b": only_b, "p": p,
    }  # fmt: skip


def _unpaired(a: dict[str, Any], b: dict[str, Any]) -> Document | None:
    """Fisher's exact test on the best-known robust accuracies of different points."""
    one, other = a["best_known"], b["best_known"]
    if not (one and other and one.n and other.n):
        return None
    unbroken = [[round(r.value * r.n), r.n - round(r.value * r.n)] for r in (one, other)]
    p = float(stats.fisher_exact(unbroken).pvalue)
    return {"test": "fisher", "n": min(one.n, other.n), "a": one.value, "b": other.value, "p": p}


def _attacks(a: View, b: View, common: list[int | None], lost: tuple[_Lost, _Lost]) -> Document:
    """Attacks that both audits ran on every point, and those that only one ran."""
    rows = [{row.name: row for row in report.attacks_run if row.role != "sanity"} for report in (a, b)]
    both = [
        name
        for name in rows[0]
        if name in rows[1] and all(rows[i][name].attempted >= lost[i].right > 0 for i in range(2))
    ]
    tests = [{"name": name, **_test(common, lost, name)} for name in both] if common else []
    for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = adjusted
    return {
        "common": tests,
        "only_a": [name for name in rows[0] if name not in rows[1]],
        "only_b": [name for name in rows[1] if name not in rows[0]],
    }


def _probes(a: View, b: View) -> list[Document]:
    """Probes whose status changed; "absent" where an audit did not have one."""
    one, other = ({probe.rule: probe for probe in report.probes} for report in (a, b))
    changed = []
    for rule in sorted({*one, *other}):
        before, after = one.get(rule), other.get(rule)
        status = [probe.status if probe else "absent" for probe in (before, after)]
        if status[0] != status[1]:
            figures = [probe.figure or probe.reason if probe else "" for probe in (before, after)]
            changed.append(
                {"rule": rule, "a": status[0], "b": status[1], "a_figure": figures[0], "b_figure": figures[1]}
            )
    return changed


def _notes(
    first: Document, second: Document, a: View, b: View, common: list[int | None], lost: tuple[_Lost, _Lost]
) -> list[str]:
    notes = []
    if a.threat != b.threat or first["threat"] != second["threat"]:
        notes.append(
            f"The threat models differ ({a.threat} and {b.threat}): robust accuracies answer different questions."
        )
    if not common:
        notes.append("The audits drew no point in common: the comparison is unpaired, and less can be distinguished.")
    elif lost[0].all != lost[1].all:
        notes.append(
            f"The audits share {len(common)} points; tests are over these, accuracies over all points of each."
        )
    targets = [coerce.mapping(document["target"]) for document in (first, second)]
    if targets[0].get("sha256") and all(targets[0].get(k) == targets[1].get(k) for k in ("sha256", "source", "arch")):
        notes.append("Both audits are of the same model: differences come from the settings or the program.")
    return notes


def text(comparison: Document) -> str:
    """A comparison for a terminal, in at most 100 columns."""
    a, b = comparison["a"], comparison["b"]
    points = comparison["points"]
    lines = [f"A  {a['model']}  ({a['file']})", f"B  {b['model']}  ({b['file']})", ""]
    same = a["verdict"] == b["verdict"]
    lines.append(f"verdict    {a['verdict']}" + (" in both" if same else f" -> {b['verdict']}"))
    claims = [_claim(one["claim"]) for one in (a, b)]
    if claims != ["none", "none"]:
        lines.append(f"claim      {claims[0]}" + (" in both" if claims[0] == claims[1] else f" -> {claims[1]}"))
    for word in ("gone", "new"):
        if comparison["mechanisms"][word]:
            lines.append(f"mechanism  {word}: {', '.join(comparison['mechanisms'][word])}")
    lines.append(f"points     {points['common']} in common, {points['only_a']} only in A, {points['only_b']} only in B")
    lines += _section("Settings that differ", [
        (one["name"], _short(one["a"]), _short(one["b"])) for one in comparison["settings"]
    ], ("", "A", "B"))  # fmt: skip
    lines += _section("Accuracy", [
        (name, *(words.rate(coerce.rate(comparison["accuracy"][key][side]), "-") for side in ("a", "b")))
        for key, name, _ in words.ACCURACY if key in comparison["accuracy"]
    ], ("", "A", "B"))  # fmt: skip
    best = comparison["best_known"]
    tests = [("best known", best, best["p"])] if best else []
    tests += [(test["name"], test, test["p_holm"]) for test in comparison["attacks"]["common"]]
    title = "Paired, on the points in common" if comparison["paired"] else "Unpaired"
    rows = [
        (name, words.percent(test["a"]), words.percent(test["b"]), str(test.get("lost_only_by_a", "-")),
         str(test.get("lost_only_by_b", "-")), f"{p:.2g}", _reading(test, p))
        for name, test, p in tests
    ]  # fmt: skip
    lines += _section(title, rows, ("robust accuracy", "A", "B", "lost by A only", "by B only", "p", ""))
    lines += _section("Probes that changed", [
        (one["rule"], f"{one['a']} -> {one['b']}", words.joined((_cut(one["a_figure"]), _cut(one["b_figure"])), " -> "))
        for one in comparison["probes"]
    ], ("", "", ""))  # fmt: skip
    for side in ("a", "b"):
        if only := comparison["attacks"][f"only_{side}"]:
            lines += ["", *wrapped(f"Attacks only in {side.upper()}: {', '.join(only)}")]
    if comparison["notes"]:
        lines += ["", *(line for note in comparison["notes"] for line in wrapped(f"note: {note}", rest="      "))]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _claim(claim: Document) -> str:
    if claim["claimed"] is None:
        return "none"
    return f"{words.percent(claim['claimed'])} {words.CLAIM.get(claim['status'], claim['status'])}"


#: Level below which a difference is called one; as for the intervals of a report.
_ALPHA = 0.01


def _reading(test: Document, p: float) -> str:
    if p >= _ALPHA:
        return "no difference shown"
    return "B is broken more" if test["a"] > test["b"] else "A is broken more"


def _section(title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    table = [header, *rows] if any(header) else rows
    return [
        "",
        title,
        *("  " + columns(row, widths) for row in table),
    ]


def _cut(figure: str) -> str:
    """A figure, or the reason for none, by whole words: both sides of a comparison share a line."""
    return textwrap.shorten(figure, _FIGURE, placeholder=" …")


def _short(value: Any) -> str:
    raw = "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    flat = coerce.text(raw, "none")
    return flat if len(flat) <= 36 else flat[:33] + "..."
