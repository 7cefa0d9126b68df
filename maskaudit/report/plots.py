"""Robust accuracy against radius and effort, and the loss surface, as inline SVG (see `maskaudit.report.canvas`).

Intervals are exact (Clopper & Pearson 1934), computed here from the share and the
number of points that the document gives.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maskaudit.report import surface, words
from maskaudit.report.canvas import COLOURS, FONT, WIDTH, drawing, label_ends, share_axes, svg
from maskaudit.report.coerce import count, mappings, number
from maskaudit.report.records import AttackView, View
from maskaudit.results import Rate
from maskaudit.verdict.statistics import clopper_pearson

#: Most lines in the figure of robust accuracy against steps.
_MAX_LINES = 6
#: Bytes beyond which the filled areas of a figure are drawn as an image.
_VECTOR_LIMIT = 120_000
#: Largest radius, and number of steps, that are drawn: tick positions overflow far beyond.
_LARGEST_X = 1e12
#: Points of a line that are drawn, and of the radius axis, where each has its interval.
_MAX_POINTS = 400
_MAX_RADII = 60
#: Most points that an interval is computed for: more are a damaged document.
_LARGEST_N = 10**9
#: Sideways distance between the interval bars of two lines, as a share of the axis, so that none hides another.
_DODGE = 0.009

#: How a line against steps is drawn, by role: the marker at its end, and its dashes.
_STYLES = {
    "reference": ("o", "--"), "strong": ("s", "-"), "challenger": ("D", "-"), "repaired": ("^", "-."),
    "second_opinion": ("v", ":"), "exact": ("P", ":"), "other": ("x", ":"),
}  # fmt: skip


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
    width = max(x for curve in curves.values() for x, *_ in curve)
    with drawing():
        figure, axes = share_axes("Radius ε")
        ends = []
        for rank, (key, colour, name, dash, weight) in enumerate(lines):
            if curve := curves[key]:
                x, y, _ = zip(*curve, strict=True)
                axes.plot(x, y, ls=dash, color=COLOURS[colour], lw=weight, marker="o", ms=weight + 1.2)
                for at, share, n in curve:
                    _interval(axes, at + (rank - 1) * _DODGE * width, share, n, COLOURS[colour])
                ends.append((y[-1], name, colour))
        if eps is not None:
            axes.axvline(eps, color=COLOURS["soft"], lw=0.8, ls=(0, (2, 3)), zorder=0)
            axes.text(eps, 1.03, "audited ε", color=COLOURS["soft"], ha="center", va="bottom", fontsize=FONT - 1)
        if view.claimed is not None and eps is not None and 0 <= view.claimed <= 1:
            axes.plot([eps], [view.claimed], "*", ms=11, color=COLOURS["ink"], zorder=5)
            axes.annotate(
                "claim", (eps, view.claimed), (-6, -15), textcoords="offset points", ha="right",
                color=COLOURS["ink"],
            )  # fmt: skip
        label_ends(axes, ends)
        best = ", ".join(f"{_shown(y, n)} at ε {words.radius(x)}" for x, y, n in curves["best_known"])
        return svg(
            figure, "eps", "Robust accuracy against ε", f"Best known: {best}." if best else "No best-known figures."
        )


def step_curves(view: View) -> Markup | None:
    """Robust accuracy against the steps or queries of the strongest attacks of each role; None without curves."""
    chosen = _strongest(view.attacks_run)
    if not chosen:
        return None
    with drawing():
        figure, axes = share_axes("Steps or queries (logarithmic)")
        axes.set_xscale("symlog", linthresh=1)
        ends, texts = [], []
        for rank, attack in enumerate(chosen):
            share = attack.accuracy
            if share is None:
                continue
            x, y = _survivors(attack, view.accuracy["clean"])
            colour, (marker, dashes) = COLOURS[attack.role], _STYLES[attack.role]
            axes.step(x, y, where="post", color=colour, lw=1.8, ls=dashes)
            axes.plot(x[-1], y[-1], marker, color=colour, ms=5)
            for at, height in _stations(x, y):
                _interval(axes, at * (1 + 4 * _DODGE * rank), height, share.n, colour)
            ends.append((y[-1], attack.name[:18], attack.role))
            texts.append(f"{attack.title} ends at {words.rate(share)}")
        longest = max(attack.curve[-1][0] for attack in chosen)
        axes.set_xlim(0, max(longest, 1) * 1.25)
        ticks = [tick for tick in (1, 10, 100, 1000, 10_000, 100_000, 1_000_000) if tick <= longest]
        axes.set_xticks([0, *ticks], ["0", *(f"{tick:,}" for tick in ticks)])
        axes.minorticks_off()
        label_ends(axes, ends)
        return svg(figure, "steps", "Robust accuracy against attack steps", "; ".join(texts) + ".")


def surfaces(data: surface.Surface | None) -> list[tuple[str, str, str, Markup]]:
    """The slice of breaking margin and of loss as (name, title, reading, figure); empty without data."""
    if data is None:
        return []
    panels = surface.panels(data)
    return [(name, title, texts, _panel(data, name, title, values, texts)) for name, title, values, texts in panels]


def _panel(data: surface.Surface, name: str, title: str, values: surface.Values, reading: str) -> Markup:
    """One panel as outlines, or as pixels where outlines would be too large."""
    drawn = Markup()
    for as_image in (False, True):
        with drawing():
            figure = Figure(figsize=(WIDTH / 72, 340 / 72))
            axes = figure.add_axes((0.145, 0.14, 0.83, 0.84))
            surface.draw(axes, data, name, values, COLOURS, as_image=as_image)
            drawn = svg(figure, f"surface-{name}", title, reading)
        if len(drawn) <= _VECTOR_LIMIT:
            break
    return drawn


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float, int]]:
    """(radius, share, number of points) of one line, by radius."""
    read = ((number(row.get("eps")), number(row.get(key)), count(row.get("n"))) for row in rows[:_MAX_RADII])
    return sorted(
        (x, y, n) for x, y, n in read if x is not None and y is not None and 0 <= x <= _LARGEST_X and 0 <= y <= 1
    )


def _bounds(share: float, n: int) -> tuple[float, float] | None:
    """Exact interval of a share of n points; None where n is unknown or absurd."""
    return clopper_pearson(round(share * n), n) if 1 <= n <= _LARGEST_N else None


def _interval(axes: Axes, x: float, share: float, n: int, colour: str) -> None:
    if bounds := _bounds(share, n):
        axes.vlines(x, *bounds, color=colour, lw=1.0, alpha=0.75, zorder=1)


def _shown(share: float, n: int) -> str:
    bounds = _bounds(share, n)
    return f"{words.percent(share)} [{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}%]" if bounds else words.percent(share)


def _stations(x: list[float], y: list[float]) -> list[tuple[float, float]]:
    """Where a line against steps shows its interval: at each power of ten that it passes, and at its end."""
    shown = [(x[-1], y[-1])]
    for step in (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6):
        if x[0] < step < 0.6 * x[-1]:
            shown.append((step, next(height for at, height in reversed(list(zip(x, y, strict=True))) if at <= step)))
    return shown


def _strongest(attacks: tuple[AttackView, ...]) -> list[AttackView]:
    """At most `_MAX_LINES` attacks with a curve: the strongest of each role, then the next of each role; none where no
    curve is longer than one step."""
    ranks: dict[str, int] = {}
    ranked = []
    for attack in attacks:
        measured = attack.curve and attack.accuracy is not None and attack.role != "sanity"
        if measured and attack.curve[-1][0] <= _LARGEST_X:
            ranks[attack.role] = ranks.get(attack.role, -1) + 1
            ranked.append((ranks[attack.role], attack))
    chosen = [attack for _, attack in sorted(ranked, key=lambda pair: pair[0])[:_MAX_LINES]]
    return chosen if any(attack.curve[-1][0] > 1 for attack in chosen) else []


def _survivors(attack: AttackView, clean: Rate | None) -> tuple[list[float], list[float]]:
    """Robust accuracy after each step, from the clean accuracy down to the re-scored final value.

    Points that the attack broke without seeing it itself are counted at its last step.
    """
    final = attack.accuracy.value if attack.accuracy else 0.0
    n = attack.accuracy.n if attack.accuracy and attack.accuracy.n else max(attack.attempted, 1)
    start = clean.value if clean else min(1.0, final + attack.broken / n)
    stride = max(1, len(attack.curve) // _MAX_POINTS)
    curve = [*attack.curve[:-1:stride], attack.curve[-1]]
    steps, heights = [step for step, _ in curve], [start - broken / n for _, broken in curve]
    heights[-1] = final
    return [0.0, *steps], [start, *heights]
