"""The loss-surface slice: reading it from the document and drawing one panel.

The slice spans the gradient direction and the direction of an example that a
challenger found, at a point where the two disagree. A flat loss panel next to a
margin panel that crosses zero is what masking looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from maskaudit.report import coerce, words

#: Filled steps between the lowest and the highest value.
BANDS = 8
#: Grid nodes per side that are drawn.
_MAX_SIDE = 61
#: Values beyond this are treated as missing: differences of larger ones overflow.
_LARGEST = 1e100
#: Coordinates, in units of ε, beyond which a slice is not drawn.
_FARTHEST = 1e6

#: Colours of the bands where a figure is drawn as pixels, which cannot follow the page: legible on dark and light.
PIXEL_BANDS = {
    "margin": ["#5d87ad", "#86a8c6", "#b1c9dd", "#dbe7f0", "#f6dfd3", "#eab79e", "#dc8d6b", "#c9623d"],
    "loss": ["#eef1f4", "#dfd9e6", "#cdc0d8", "#b9a6c9", "#a58cba", "#9072aa", "#7b5999", "#664187"],
}

Values = np.ma.MaskedArray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Surface:
    """A slice: coordinates in units of ε, and rows of values (rows follow v, columns u)."""

    point: int | None
    u_label: str
    v_label: str
    u: list[float]
    v: list[float]
    margin: Values
    loss: Values | None
    gradient_at: tuple[float, float] | None
    challenger_at: tuple[float, float] | None


def read(value: Any) -> Surface | None:
    """The slice in the document's `figures.surface`, or None where it is missing or does not fit together."""
    fields = coerce.mapping(value)
    u, v = _numbers(fields.get("u")), _numbers(fields.get("v"))
    if u is None or v is None or min(len(u), len(v)) < 2 or not (_rising(u) and _rising(v)):
        return None
    margin, loss = (_grid(fields.get(key), len(v), len(u)) for key in ("margin", "loss"))
    if margin is None:
        return None
    across, up = (slice(None, None, -(-len(axis) // _MAX_SIDE)) for axis in (u, v))
    return Surface(
        point=coerce.integer(fields.get("point")),
        u_label=coerce.text(fields.get("u_label"), "first direction"),
        v_label=coerce.text(fields.get("v_label"), "second direction"),
        u=u[across],
        v=v[up],
        margin=margin[up, across],
        loss=None if loss is None else loss[up, across],
        gradient_at=_pair(fields.get("gradient_at")),
        challenger_at=_pair(fields.get("challenger_at")),
    )


def panels(data: Surface) -> list[tuple[str, str, Values, str]]:
    """(name, title, values, description in words) of each panel."""
    margin, loss = data.margin, data.loss
    crossed = f"Above zero the point is misclassified: {float((margin > 0).mean()):.0%} of this slice."
    result = [("margin", "Breaking margin: what decides", margin, f"{crossed} {_span(margin)}")]
    if loss is not None:
        low, height = loss.min(), loss.max() - loss.min()
        flat = float((loss - low <= 0.01 * height).mean())
        reading = f"{_span(loss)} {flat:.0%} of this slice lies within 1% of the lowest value."
        result.append(("loss", "Cross-entropy: what the usual attack sees", loss, reading))
    return result


def _span(values: Values) -> str:
    return f"Values from {words.number(float(values.min()) + 0.0)} to {words.number(float(values.max()) + 0.0)}."


def draw(
    axes: Axes, data: Surface, name: str, values: Values, colours: Mapping[str, str], *, as_image: bool = False
) -> None:
    """Draw one panel: filled bands, the decision boundary, the clean point and where the two directions lead.

    Args:
        axes: where to draw.
        data: the slice.
        name: "margin" or "loss".
        values: the panel's values.
        colours: drawn colour by name: ink, soft, rule, paper and `band-0` … .
        as_image: draw the areas as pixels in fixed colours, for surfaces so rough that outlines would be too large.
    """
    axes.patch.set_visible(False)
    axes.set_xlim(data.u[0], data.u[-1])
    axes.set_ylim(data.v[0], data.v[-1])
    if values.max() > values.min():
        fills = PIXEL_BANDS[name] if as_image else [colours[f"band-{i}"] for i in range(BANDS)]
        filled = axes.contourf(data.u, data.v, values, levels=_levels(name, values), colors=fills)
        filled.set_rasterized(as_image)
    else:
        middle = (0.5 * (data.u[0] + data.u[-1]), 0.25 * data.v[0] + 0.75 * data.v[-1])
        axes.text(*middle, f"{words.number(float(values.min()))} everywhere", color=colours["soft"], ha="center")
    if data.margin.min() < 0 < data.margin.max():
        ink = "#1d1c1a" if as_image else colours["ink"]
        boundary = axes.contour(data.u, data.v, data.margin, levels=[0.0], colors=[ink], linewidths=1.6)
        boundary.set_rasterized(as_image)
    _mark(axes, (0.0, 0.0), "o", "clean", colours)
    _mark(axes, data.gradient_at, "s", "gradient step", colours)
    _mark(axes, data.challenger_at, "D", "example found", colours)
    axes.set_xlabel(f"{data.u_label[:48]} (ε)", color=colours["soft"])
    axes.set_ylabel(f"{data.v_label[:44]} (ε)", color=colours["soft"])
    axes.tick_params(length=0, pad=6, colors=colours["soft"])
    axes.locator_params(nbins=5)
    for spine in axes.spines.values():
        spine.set_color(colours["rule"])


def _levels(name: str, values: Values) -> list[float]:
    """Band edges: zero is the middle edge of a margin, so that colour tells misclassified from correct."""
    low, high = float(values.min()), float(values.max())
    if name != "margin":
        return [float(edge) for edge in np.linspace(low, high, BANDS + 1)]
    least, half = 1e-9 * max(abs(low), abs(high)), BANDS // 2
    below, above = np.linspace(min(low, -least), 0, half + 1), np.linspace(0, max(high, least), half + 1)
    return [float(edge) for edge in (*below, *above[1:])]


def _mark(axes: Axes, at: tuple[float, float] | None, marker: str, name: str, colours: Mapping[str, str]) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if at is None or not (left <= at[0] <= right and bottom <= at[1] <= top):
        return
    axes.plot(*at, marker, ms=8, color=colours["paper"], mec=colours["ink"], mew=1.6, clip_on=False, zorder=6)
    flip, below = at[0] > 0.5 * (left + right), at[1] > 0.25 * bottom + 0.75 * top
    axes.annotate(
        name, at, (-9 if flip else 9, -9 if below else 6), textcoords="offset points", color=colours["ink"],
        ha="right" if flip else "left", va="top" if below else "bottom", zorder=7,
    )  # fmt: skip


def _numbers(value: Any) -> list[float] | None:
    result = [coerce.number(item) for item in coerce.items(value)]
    return [item for item in result if item is not None] if all(item is not None for item in result) else None


def _grid(value: Any, rows: int, columns: int) -> Values | None:
    """Rows of numbers as an array, masked where the document has none (an infinite loss is null in JSON)."""
    read = [[coerce.number(item) for item in coerce.items(row)] for row in coerce.items(value)]
    if len(read) != rows or any(len(row) != columns for row in read):
        return None
    grid = np.ma.masked_invalid(
        np.array([[np.nan if x is None or abs(x) > _LARGEST else x for x in row] for row in read], dtype=np.float64)
    )
    return grid if grid.count() > grid.size // 2 else None


def _pair(value: Any) -> tuple[float, float] | None:
    pair = _numbers(value)
    return (pair[0], pair[1]) if pair is not None and len(pair) == 2 else None


def _rising(values: list[float]) -> bool:
    return max(map(abs, values)) <= _FARTHEST and all(a < b for a, b in pairwise(values))
