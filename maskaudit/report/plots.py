"""The figures of the HTML report as inline SVG, drawn with matplotlib's object interface.

Colours are written as CSS variables of the page, so that the same figure follows
dark and light; text stays text. The same data gives the same bytes: fixed hash
salt, no date, fixed layout.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maskaudit.report import surface, words
from maskaudit.report.coerce import mappings, number
from maskaudit.report.records import AttackView, View

#: Drawn colour → CSS variable. The drawn values are placeholders that no other element uses.
_COLOURS = {
    "ink": "#010101",
    "soft": "#010102",
    "rule": "#010103",
    "paper": "#010104",
    "reference": "#010111",
    "strong": "#010112",
    "challenger": "#010113",
    "repaired": "#010114",
    "second_opinion": "#010115",
    "sanity": "#010116",
    "other": "#010117",
    "best": "#010118",
    **{f"band-{i}": f"#0102{i:02x}" for i in range(surface.BANDS)},
}

#: Figure size in points; at phone width (340 px) 11 pt text still renders at 9 px.
_WIDTH, _HEIGHT = 420.0, 290.0
_FONT = 11.0
#: Most lines in the figure of robust accuracy against steps.
_MAX_LINES = 6
#: Bytes beyond which the filled areas of a figure are drawn as an image.
_VECTOR_LIMIT = 120_000
#: Largest radius, and number of steps, that are drawn: tick positions overflow far beyond.
_LARGEST_X = 1e12
#: Points of a line that are drawn.
_MAX_POINTS = 400

_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "maskaudit",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": _FONT,
    "axes.linewidth": 0.8,
    "path.simplify": True,
}

_MARKERS = {"reference": "o", "strong": "s", "challenger": "D", "repaired": "^", "second_opinion": "v", "other": "x"}
_DASHES = {"reference": "--", "strong": "-", "challenger": "-", "repaired": "-.", "second_opinion": ":", "other": ":"}


def eps_curve(view: View, rows: Any) -> Markup | None:
    """Robust accuracy against ε: reference, strong gradient attacks, best known; None without data."""
    lines = (
        ("best_known", "best", "Best known", "-", 3.2),
        ("strong", "strong", "Strong gradient", (0, (4, 2)), 1.5),
        ("reference", "reference", "Reference", (0, (1.5, 1.5)), 1.8),
    )
    curves = {key: _points(mappings(rows), key) for key, *_ in lines}
    if not any(len(curve) > 1 for curve in curves.values()):
        return None
    eps = view.eps if view.eps is not None and 0 <= view.eps <= _LARGEST_X else None
    with _drawing():
        figure, axes = _axes("Radius ε")
        ends = []
        for key, colour, name, dash, width in lines:
            if curve := curves[key]:
                x, y = zip(*curve, strict=True)
                axes.plot(x, y, ls=dash, color=_COLOURS[colour], lw=width, marker="o", ms=width + 1.2)
                ends.append((y[-1], name, colour))
        if eps is not None:
            axes.axvline(eps, color=_COLOURS["soft"], lw=0.8, ls=(0, (2, 3)), zorder=0)
            axes.text(eps, 1.03, "audited ε", color=_COLOURS["soft"], ha="center", va="bottom", fontsize=_FONT - 1)
        if view.claimed is not None and eps is not None and 0 <= view.claimed <= 1:
            axes.plot([eps], [view.claimed], "*", ms=11, color=_COLOURS["ink"], zorder=5)
            axes.annotate(
                "claim", (eps, view.claimed), (-6, -15), textcoords="offset points", ha="right",
                color=_COLOURS["ink"],
            )  # fmt: skip
        _label_ends(axes, ends)
        best = ", ".join(f"{words.percent(y)} at ε {words.radius(x)}" for x, y in curves["best_known"])
        return _svg(
            figure, "eps", "Robust accuracy against ε", f"Best known: {best}." if best else "No best-known figures."
        )


def step_curves(view: View) -> Markup | None:
    """Robust accuracy against the steps or queries of the strongest attacks of each role; None without curves."""
    chosen = _strongest(view.attacks_run)
    if not chosen:
        return None
    with _drawing():
        figure, axes = _axes("Steps or queries (logarithmic)")
        axes.set_xscale("symlog", linthresh=1)
        ends, told = [], []
        for attack in chosen:
            share = attack.accuracy
            if share is None:
                continue
            x, y = _standing(attack)
            colour = _COLOURS[attack.role]
            axes.step(x, y, where="post", color=colour, lw=1.8, ls=_DASHES[attack.role])
            axes.plot(x[-1], y[-1], _MARKERS[attack.role], color=colour, ms=5)
            if share.n:
                axes.vlines(x[-1], share.low, share.high, color=colour, lw=1.2)
            ends.append((y[-1], attack.name[:18], attack.role))
            told.append(f"{attack.title} ends at {words.rate(share)}")
        longest = max(attack.curve[-1][0] for attack in chosen)
        axes.set_xlim(0, max(longest, 1) * 1.25)
        ticks = [tick for tick in (1, 10, 100, 1000, 10_000, 100_000, 1_000_000) if tick <= longest]
        axes.set_xticks([0, *ticks], ["0", *(f"{tick:,}" for tick in ticks)])
        axes.minorticks_off()
        _label_ends(axes, ends)
        return _svg(figure, "steps", "Robust accuracy against attack steps", "; ".join(told) + ".")


def surfaces(data: surface.Surface | None) -> list[tuple[str, str, str, Markup]]:
    """The slice of breaking margin and of loss as (name, title, reading, figure); empty without data."""
    if data is None:
        return []
    panels = surface.panels(data)
    return [(name, title, told, _panel(data, name, title, values, told)) for name, title, values, told in panels]


def _panel(data: surface.Surface, name: str, title: str, values: surface.Values, reading: str) -> Markup:
    """One panel as outlines, or as pixels where outlines would be too large."""
    drawn = Markup()
    for as_image in (False, True):
        with _drawing():
            figure = Figure(figsize=(_WIDTH / 72, 340 / 72))
            axes = figure.add_axes((0.145, 0.14, 0.83, 0.84))
            surface.draw(axes, data, name, values, _COLOURS, as_image=as_image)
            drawn = _svg(figure, f"surface-{name}", title, reading)
        if len(drawn) <= _VECTOR_LIMIT:
            break
    return drawn


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = ((number(row.get("eps")), number(row.get(key))) for row in rows[:_MAX_POINTS])
    return sorted((x, y) for x, y in pairs if x is not None and y is not None and 0 <= x <= _LARGEST_X and 0 <= y <= 1)


def _strongest(attacks: tuple[AttackView, ...]) -> list[AttackView]:
    """At most `_MAX_LINES` attacks with a curve: the strongest of each role, then the next of each role."""
    ranks: dict[str, int] = {}
    ranked = []
    for attack in attacks:
        if (
            attack.curve
            and attack.accuracy is not None
            and attack.role != "sanity"
            and attack.curve[-1][0] <= _LARGEST_X
        ):
            ranks[attack.role] = ranks.get(attack.role, -1) + 1
            ranked.append((ranks[attack.role], attack))
    return [attack for _, attack in sorted(ranked, key=lambda pair: pair[0])[:_MAX_LINES]]


def _standing(attack: AttackView) -> tuple[list[float], list[float]]:
    """Robust accuracy after each step: the re-scored final value, plus the points broken later than that step."""
    final = attack.accuracy.value if attack.accuracy else 0.0
    n = attack.accuracy.n if attack.accuracy and attack.accuracy.n else max(attack.attempted, 1)
    total = attack.curve[-1][1]
    stride = max(1, len(attack.curve) // _MAX_POINTS)
    curve = [*attack.curve[:-1:stride], attack.curve[-1]]
    if curve[0][0] > 0:
        curve.insert(0, (0.0, 0))
    return [step for step, _ in curve], [min(1.0, final + max(0, total - broken) / n) for _, broken in curve]


def _axes(xlabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))
    axes = figure.add_axes((0.105, 0.155, 0.63, 0.765))
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_COLOURS["soft"])
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.grid(axis="y", color=_COLOURS["rule"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_COLOURS["soft"], labelsize=_FONT - 1)
    axes.set_xlabel(xlabel, color=_COLOURS["soft"], fontsize=_FONT)
    return figure, axes


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Name each line at its right end, spread so that names do not overlap."""
    gap, height = 0.068, -0.01
    heights = []
    for y, _, _ in sorted(ends):
        height = max(y, height)
        heights.append(height)
        height += gap
    overflow = max(0.0, heights[-1] - 1.0) if heights else 0.0
    for (_, name, colour), y in zip(sorted(ends), heights, strict=True):
        at = (y - overflow + 0.02) / 1.04
        axes.text(1.03, at, name, transform=axes.transAxes, va="center", color=_COLOURS[colour], fontsize=_FONT - 0.5)


@contextmanager
def _drawing() -> Iterator[None]:
    """Our matplotlib settings, undone afterwards; names in scripts that its font lacks are the browser's to draw."""
    with matplotlib.style.context(["default", _SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an inline `<svg>` with title and description, ids of its own and rounded coordinates."""
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = buffer.getvalue()
    view_box = re.search(r'viewBox="([-0-9. ]+)"', drawn)
    body = drawn[drawn.index("<svg") :]
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r'(?<=\sd=")[^"]*|(?<=transform=")[^"]*', _rounded, body)
    for variable, colour in _COLOURS.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"\n\s*", "\n", body)
    box = view_box.group(1) if view_box else f"0 0 {_WIDTH} {_HEIGHT}"
    head = Markup('<svg role="img" aria-labelledby="{0}-title {0}-desc" viewBox="{1}">').format(name, box)
    return Markup('{0}<title id="{1}-title">{2}</title><desc id="{1}-desc">{3}</desc>{4}</svg>').format(
        head, name, escape(title), escape(description), Markup(body)
    )


def _rounded(match: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point: half the size, no visible change."""
    return re.sub(r"-?\d+\.\d{3,}", lambda value: f"{float(value.group()):.2f}".rstrip("0").rstrip("."), match.group())
