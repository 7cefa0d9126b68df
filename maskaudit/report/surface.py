"""The loss-surface slice: reading it from the document and drawing one panel.

The slice spans the gradient direction and the direction of an example that a
challenger found, at a point where the two disagree. A flat loss panel beside a
margin panel that crosses zero is what masking looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from maskaudit.report import coerce

#: Filled steps between the lowest and the highest value.
BANDS = 8
#: Grid nodes per side that are drawn.
_MAX_SIDE = 61

Grid = list[list[float]]


@dataclass(frozen=True)
class Surface:
    """A slice: coordinates in units of ε, and rows of values (rows follow v, columns u)."""

    point: int | None
    u_label: str
    v_label: str
    u: list[float]
    v: list[float]
    margin: Grid
    loss: Grid | None
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
        margin=[row[across] for row in margin[up]],
        loss=None if loss is None else [row[across] for row in loss[up]],
        gradient_at=_pair(fields.get("gradient_at")),
        challenger_at=_pair(fields.get("challenger_at")),
    )


def panels(data: Surface) -> list[tuple[str, str, Grid, str]]:
    """(name, title, values, description in words) of each panel."""
    broken = sum(value > 0 for row in data.margin for value in row)
    cells = len(data.u) * len(data.v)
    result = [
        (
            "margin",
            "Breaking margin: what decides",
            data.margin,
            f"Above zero the point is misclassified: {100 * broken / cells:.0f}% of this slice. "
            f"Values from {_low(data.margin):.3g} to {_high(data.margin):.3g}.",
        )
    ]
    if data.loss is not None:
        low, high = _low(data.loss), _high(data.loss)
        flat = sum(value - low <= 0.01 * (high - low) for row in data.loss for value in row)
        reading = f"Values from {low:.3g} to {high:.3g}; {100 * flat / cells:.0f}% of this slice is flat at the lowest."
        result.append(("loss", "Cross-entropy: what the usual attack sees", data.loss, reading))
    return result


def draw(
    axes: Axes, data: Surface, name: str, grid: Grid, colours: Mapping[str, str], as_image: bool
) -> None:
    """Draw one panel: filled bands, the decision boundary, the clean point and where the two directions lead."""
    values = np.asarray(grid, dtype=np.float64)
    if values.max() > values.min():
        fills = [colours[f"band-{i}"] for i in range(BANDS)]
        if name == "margin":
            half = BANDS // 2
            levels = np.concatenate(
                [np.linspace(min(values.min(), -1e-9), 0, half + 1), np.linspace(0, max(values.max(), 1e-9), half + 1)[1:]]
            )
        else:
            levels = np.linspace(values.min(), values.max(), BANDS + 1)
        filled = axes.contourf(data.u, data.v, values, levels=levels, colors=fills)
        filled.set_rasterized(as_image)
    margin = np.asarray(data.margin, dtype=np.float64)
    if margin.min() < 0 < margin.max():
        boundary = axes.contour(data.u, data.v, margin, levels=[0.0], colors=[colours["ink"]], linewidths=1.6)
        boundary.set_rasterized(as_image)
    _mark(axes, (0.0, 0.0), "o", "clean", colours)
    _mark(axes, data.gradient_at, "s", "gradient step", colours)
    _mark(axes, data.challenger_at, "D", "challenger", colours)
    axes.set_xlim(data.u[0], data.u[-1])
    axes.set_ylim(data.v[0], data.v[-1])
    axes.set_xlabel(f"{data.u_label[:48]} (ε)", color=colours["soft"])
    axes.set_ylabel(f"{data.v_label[:44]} (ε)", color=colours["soft"])
    axes.tick_params(length=0, colors=colours["soft"])
    for spine in axes.spines.values():
        spine.set_color(colours["rule"])


def _mark(axes: Axes, at: tuple[float, float] | None, marker: str, name: str, colours: Mapping[str, str]) -> None:
    if at is None:
        return
    axes.plot(*at, marker, ms=8, color=colours["paper"], mec=colours["ink"], mew=1.6, clip_on=False, zorder=6)
    left = at[0] > 0.5 * (axes.get_xlim()[0] + axes.get_xlim()[1])
    below = at[1] > 0.5
    axes.annotate(
        name, at, (-9 if left else 9, -9 if below else 6), textcoords="offset points", color=colours["ink"],
        ha="right" if left else "left", va="top" if below else "bottom", zorder=7,
    )  # fmt: skip


def _numbers(value: Any) -> list[float] | None:
    result = [coerce.number(item) for item in coerce.items(value)]
    return [item for item in result if item is not None] if all(item is not None for item in result) else None


def _grid(value: Any, rows: int, columns: int) -> Grid | None:
    result = [_numbers(row) for row in coerce.items(value)]
    grid = [row for row in result if row is not None and len(row) == columns]
    return grid if len(grid) == rows == len(result) else None


def _pair(value: Any) -> tuple[float, float] | None:
    pair = _numbers(value)
    return (pair[0], pair[1]) if pair is not None and len(pair) == 2 else None


def _rising(values: list[float]) -> bool:
    return all(a < b for a, b in zip(values, values[1:], strict=False))


def _low(grid: Grid) -> float:
    return min(min(row) for row in grid)


def _high(grid: Grid) -> float:
    return max(max(row) for row in grid)
