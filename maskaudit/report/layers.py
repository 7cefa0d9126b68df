"""Figures that only some audits have data for: gradient flow by op and by depth, accuracy before and after repair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from maskaudit.report import coerce, words
from maskaudit.report.canvas import COLOURS, FONT, bare_axes, drawing, plain_axes, svg
from maskaudit.report.records import AttackView, View
from maskaudit.results import Rate
from maskaudit.verdict.statistics import rate

#: Most layers and repairs that are drawn: a figure is read, not scrolled.
_MAX_LAYERS = 28
_MAX_REPAIRS = 8
#: Most layers that the line against depth is drawn for.
_MAX_DEPTH = 2000
#: Decades that the axis of norms spans at most, and where a norm of exactly zero is drawn.
_MAX_DECADES = 40.0


@dataclass(frozen=True)
class LayerView:
    """The gradient that arrives at one layer; `decades` is log10 of its norm, None for exactly zero."""

    name: str
    decades: float | None
    zero_share: float | None
    culprit: bool


def read_flow(value: Any) -> tuple[LayerView, ...]:
    """The layers in `figures.gradient_flow`, from the input to the output; culprits stay when the list is thinned."""
    layers = []
    for item in coerce.mappings(value):
        norm, zero = coerce.number(item.get("norm")), coerce.number(item.get("zero_share"))
        if norm is None or norm < 0:
            continue
        layers.append(
            LayerView(
                coerce.text(item.get("name"), "unnamed"),
                math.log10(norm) if norm > 0 else None,
                zero if zero is not None and 0 <= zero <= 1 else None,
                item.get("culprit") is True,
            )
        )
    stride = max(1, math.ceil(len(layers) / _MAX_LAYERS))
    kept = [layer for i, layer in enumerate(layers) if i % stride == 0 or layer.culprit]
    return tuple(kept[: 2 * _MAX_LAYERS])


def flow(layers: tuple[LayerView, ...]) -> Markup | None:
    """Gradient norm by layer with the culprit marked; None for fewer than two layers."""
    if len(layers) < 2:
        return None
    known = [layer.decades for layer in layers if layer.decades is not None]
    high = max(known, default=0.0)
    low = max(min(known, default=-1.0), high - _MAX_DECADES)
    floor = low - 0.08 * max(high - low, 1.0) - 0.5
    with drawing():
        figure, axes = _rows(len(layers), 0.36, 19.0)
        for row, layer in enumerate(layers):
            colour = COLOURS["tone" if layer.culprit else "strong"]
            x = floor if layer.decades is None else max(layer.decades, low)
            axes.plot([floor, x], [row, row], color=colour, lw=2.2 if layer.culprit else 1.2)
            hollow = layer.decades is None
            axes.plot(
                x, row, "o", ms=6, color=COLOURS["paper"] if hollow else colour, mec=colour, mew=1.6, clip_on=False
            )
            label = "exactly zero" if hollow else ""
            if layer.zero_share and not hollow:
                label = f"zero on {words.percent(layer.zero_share)}"
            axes.annotate(label, (x, row), (8, 0), textcoords="offset points", va="center", color=colour, fontsize=9)
            _left_name(axes, row, layer.name, "tone" if layer.culprit else "ink")
        axes.set_xlim(floor, high + 0.35 * max(high - floor, 1.0))
        axes.set_xlabel("Gradient norm, log10", color=COLOURS["soft"], fontsize=FONT)
        return svg(figure, "flow", "Gradient norm by layer", _flow_summary(layers))


def _flow_summary(layers: tuple[LayerView, ...]) -> str:
    marked = [layer.name for layer in layers if layer.culprit]
    zero = [layer.name for layer in layers if layer.decades is None]
    return " ".join(
        (
            f"{len(layers)} layers from input to output.",
            f"Marked as the culprit: {', '.join(marked)}." if marked else "No layer is marked as the culprit.",
            f"The gradient is exactly zero at {', '.join(zero)}." if zero else "It is exactly zero nowhere.",
        )
    )


@dataclass(frozen=True)
class Depth:
    """The gradient against depth, drawn, and what there is to say of it."""

    drawn: Markup
    reading: str


def depth(document: dict[str, Any]) -> Depth | None:
    """Gradient norm against depth as the probe `layer-gradient-flow` measured it; None for fewer than three layers."""
    probe = next((p for p in coerce.mappings(document.get("probes")) if p.get("rule") == "layer-gradient-flow"), {})
    details = coerce.mapping(probe.get("details"))
    norms = [tuple(map(_decades, (row.get("norm"), row.get("low"), row.get("high"))))
             for row in coerce.mappings(details.get("layers"))[:_MAX_DEPTH]]  # fmt: skip
    bend = coerce.mapping(details.get("bend"))
    at = coerce.integer(bend.get("layer"))
    known = [decades for row in norms for decades in row if decades is not None]
    if len(norms) < 3 or not known:
        return None
    reading = _depth_summary(norms, bend)
    with drawing():
        figure, axes = plain_axes("Layers below the output")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        floor = max(min(known), max(known) - _MAX_DECADES) - 0.05 * max(max(known) - min(known), 1.0)
        middle, low, high = ([floor if d is None else max(d, floor) for d in line] for line in zip(*norms, strict=True))
        where = range(len(norms))
        axes.fill_between(where, low, high, color=COLOURS["rule"], lw=0)
        axes.plot(where, middle, color=COLOURS["strong"], lw=1.6)
        lost = [k for k in where if norms[k][0] is None]
        axes.plot(lost, [floor] * len(lost), "o", ms=4, color=COLOURS["paper"], mec=COLOURS["tone"], clip_on=False)
        if at is not None and 0 <= at < len(norms):
            axes.axvline(at, color=COLOURS["tone"], lw=1.2, ls="--")
        return Depth(svg(figure, "depth", "Gradient norm against depth", reading), reading)


def _decades(norm: Any) -> float | None:
    """log10 of a norm; None where there is none."""
    value = coerce.number(norm)
    return math.log10(value) if value is not None and value > 0 else None


def _depth_summary(norms: list[tuple[float | None, ...]], bend: dict[str, Any]) -> str:
    first, last = norms[0][0], norms[-1][0]
    change = "It does not reach the input."
    if first is not None and last is not None:
        change = f"The gradient at the input is {words.power(last - first)} times as large as at the output."
    if not bend:
        return change
    place = coerce.mapping(bend.get("location"))
    name = ".".join(part for part in (coerce.text(place.get("module")), coerce.text(place.get("op"))) if part)
    how = "normalised" if bend.get("how") == "normalises" else "clipped"
    return f"{change} From the dashed line on it is {how} (in {name or 'the model'}), so that its true size is unknown."


def repaired(document: dict[str, Any], view: View) -> tuple[tuple[AttackView, Rate], ...]:
    """The attacks through a repaired model that ran, each with the robust accuracy under it and all white-box attacks.

    Counted from the points of the document, since such attacks meet only points that white-box attacks did not break.
    """
    white_box = {row.name for row in view.attacks_run if row.role in ("reference", "strong")}
    points = coerce.mapping(document["points"])
    correct, broken_by = (coerce.items(points.get(key)) for key in ("correct", "broken_by"))
    survivors = [
        set(names) for right, names in zip(correct, map(coerce.texts, broken_by), strict=False)
        if right is True and white_box.isdisjoint(names)
    ]  # fmt: skip
    rows = (row for row in view.attacks_run if row.role == "repaired" and row.attempted and correct)
    return tuple((row, rate(sum(row.name not in names for names in survivors), len(correct))) for row in rows)


def repairs(document: dict[str, Any], view: View) -> Markup | None:
    """Robust accuracy before and after each repair that lowered it; None where none did."""
    before = view.accuracy["strong_reference"] or view.accuracy["reference"]
    if before is None:
        return None
    rows = [(attack, after) for attack, after in repaired(document, view) if after.value < before.value][:_MAX_REPAIRS]
    if not rows:
        return None
    texts = []
    with drawing():
        figure, axes = _rows(len(rows), 0.03, 40.0)
        for row, (attack, after) in enumerate(rows):
            axes.plot([before.value, after.value], [row, row], color=COLOURS["rule"], lw=3, zorder=0)
            _estimate(axes, before, row - 0.06, "strong", hollow=True)
            _estimate(axes, after, row + 0.06, "repaired", hollow=False)
            name = shorten(attack.title, 72, placeholder=" …")
            axes.text(0.0, row - 0.34, name, ha="left", va="center", color=COLOURS["ink"], fontsize=10)
            texts.append(f"{attack.title}: {words.rate(before)} before, {words.rate(after)} after")
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        axes.set_xlabel("Robust accuracy", color=COLOURS["soft"], fontsize=FONT)
        return svg(figure, "repairs", "Robust accuracy before and after repair", "; ".join(texts) + ".")


def _rows(count: int, left: float, each: float) -> tuple[Figure, Axes]:
    """A figure with rows of `each` points, the first on top; `left` is the share kept for names."""
    margin = 46.0
    height = count * each + margin
    figure, axes = bare_axes(height, (left, 36 / height, 0.97 - left, count * each / height))
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks([])
    axes.grid(axis="x", color=COLOURS["rule"], lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _left_name(axes: Axes, row: int, name: str, colour: str) -> None:
    axes.text(
        -0.03, row, name if len(name) <= 30 else f"{name[:29]}…", transform=axes.get_yaxis_transform(),
        ha="right", va="center", color=COLOURS[colour], fontsize=9.5,
    )  # fmt: skip


def _estimate(axes: Axes, rate: Rate, row: float, colour: str, *, hollow: bool) -> None:
    if rate.n:
        axes.plot([rate.low, rate.high], [row, row], color=COLOURS[colour], lw=1.2)
    fill = COLOURS["paper"] if hollow else COLOURS[colour]
    axes.plot(rate.value, row, "o", ms=7, color=fill, mec=COLOURS[colour], mew=1.8)
