"""What `maskaudit inspect` found, as text and as an HTML page. Both take the plain document and nothing else.

Names of modules, ops and files come from the model's file, so nothing of them is believed: the text has no
control characters, and the page passes Jinja's autoescaping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from maskaudit.errors import without_controls
from maskaudit.report import words
from maskaudit.results import Location, dump_json

#: Rows of the gradient-flow table in the text form, and on the page.
TEXT_ROWS, PAGE_ROWS = 12, 200
#: Columns of the text form.
WIDTH = 120
#: Files that `inspect --out DIR` writes, by format.
DIRECTORY_FILES = {"html": "inspection.html", "json": "inspection.json"}


def text(document: dict[str, Any]) -> str:
    """The inspection for the terminal.

    Args:
        document: see `maskaudit.auditing.inspection.inspection`.
    """
    document = shown(document)
    gradient = document["gradient"]
    lines = [
        document["sentence"],
        "",
        f"Model: {document['kind']}, {document['ops']} ops, output: {document['output_kind']}, "
        f"{document['points']} points",
        f"Margin gradient: {'connected' if gradient['connected'] else 'NOT connected'}, exactly zero on "
        f"{gradient['zero_share']:.0%} of points (cross-entropy {gradient['ce_zero_share']:.0%})",
        f"Agreement with central differences: {scales(document)}",
    ]
    for title, items in sections(document):
        lines += ["", f"{title}:", *(f"  {where}: {what}" if what else f"  {where}" for where, what in items)]
    lines += _table(document["flow"])
    return "".join(f"{line}\n" for line in lines)


def sections(document: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, items) of everything that was found; an item is a place and what there is to say of it."""
    found = [
        ("Suspects (an audit confirms or clears them)", _suspects(document["culprits"])),
        ("Would be repaired", [(f"in {place(r['location'])}", r["sentence"]) for r in document["repairs"]]),
        ("Cuts", [
            (f"in {place(c['location'])}", c["sentence"] + (" (revived downstream)" if c["revived"] else ""))
            for c in document["cuts"]
        ]),
        ("Straight-through estimators: the gradient is that of a trend, not of each step", [
            (f"in {place(where)}", "") for where in document["estimators"]
        ]),
        ("Custom backward functions", [
            (f"{f['name']} in {place(f['location'])}",
             f["kind"] + ("" if f["agreement"] is None else f" (agreement {f['agreement']:.2f})"))
            for f in document["functions"]
        ]),
        ("Randomness", _randomness(document["randomness"])),
        ("Optimisation inside the forward pass", [(f"in {place(where)}", "") for where in document["optimises"]]),
        ("Depends on the rest of the batch", _batch(document["batch_dependent"])),
        ("Branches, for --branch", _forks(document.get("forks", []))),
        ("Searched through branches", [(row["branch"], row["sentence"]) for row in document.get("branches", ())]),
    ]  # fmt: skip
    return [(title, items) for title, items in found if items]


def _suspects(culprits: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Each once, with the sentence of the worst: a line may run many times."""
    sentences: dict[str, list[str]] = {}
    for c in culprits:
        sentences.setdefault(f"{c['mechanism']} ({c['confidence']}) in {place(c['location'])}", []).append(
            c["sentence"]
        )
    return [
        (where, first + (f" The same in {words.plural(len(others), 'other run')} of this line." if others else ""))
        for where, (first, *others) in sentences.items()
    ]


def scales(document: dict[str, Any]) -> str:
    """Agreement per step size: `0.98 at 0.05, 0.99 at 0.0125`; where there is no gradient, nothing is compared."""
    if not any(document["gradient"]["pairs"]):
        return "not compared"
    return ", ".join(f"{value:.2f} at {step:.3g}" for step, value in document["gradient"]["agreement"])


def place(location: dict[str, Any]) -> str:
    """A place as text: `conv1.relu (net.py:14)`."""
    name = ".".join(part for part in (location["module"], location["op"]) if part) or "the model"
    source = Location(**location).source
    return f"{name} ({source})" if source else name


def html(document: dict[str, Any]) -> str:
    """The inspection as one page that needs no network and no script."""
    from maskaudit.report.html import STYLESHEETS, asset, page

    document = shown(document)
    return page(
        "inspection.html",
        document=document,
        style=Markup("".join(map(asset, (*STYLESHEETS, "inspection.css")))),
        tone="suspect" if document["culprits"] else "clear",
        sections=sections(document),
        scales=scales(document),
        rows=[{**row, "place": place(row["location"])} for row in document["flow"][:PAGE_ROWS]],
        left_out=max(0, len(document["flow"]) - PAGE_ROWS),
        words=words,
    )


def shown(value: Any) -> Any:
    """The same plain data without control characters in its texts."""
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    return without_controls(value) if isinstance(value, str) else value


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {"html": html, "json": dump_json, "text": text}


def _randomness(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    text = f"{found['flips']:.0%} of decisions flip, scores move by {found['logit_spread']:.3g}"
    return [(f"{', '.join(found['sources']) or 'unknown source'} in {place(found['location'])}", text)]


def _batch(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    return [] if found is None else [(f"in {place(found)}", "a point is answered otherwise beside other points")]


def _forks(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The first ones: a deep network has many."""
    shown = [
        (f"met in {place(fork['join'])}", ", ".join(fork["branches"]) + (
            f" and {words.plural(fork['unnamed'], 'way')} without a module" if fork["unnamed"] else ""))
        for fork in found[:TEXT_ROWS]
    ]  # fmt: skip
    more = len(found) - len(shown)
    return [*shown, (f"… and {more} more", "")] if more else shown


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["", "Gradient flow, worst op first:"]
    lines.append(f"  {'op':<44} {'norm in':>9} {'norm out':>9} {'zero':>5} {'blocked':>7} {'not finite':>10}")
    for row in rows[:TEXT_ROWS]:
        blocked = "–" if row["blocked_share"] is None else f"{row['blocked_share']:.0%}"
        lines.append(
            f"  {place(row['location'])[:44]:<44} {row['norm_in']:>9.2g} {row['norm_out']:>9.2g} "
            f"{row['zero_share']:>5.0%} {blocked:>7} {row['nonfinite_share']:>10.0%}"
        )
    if len(rows) > TEXT_ROWS:
        lines.append(f"  … and {len(rows) - TEXT_ROWS} more")
    return lines
