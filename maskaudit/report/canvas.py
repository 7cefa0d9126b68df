"""What every figure of the HTML report shares: size, colours, axes, and the way from matplotlib to inline SVG.

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

from maskaudit.report import surface

#: Drawn colour → CSS variable. The drawn values are placeholders that no other element uses.
COLOURS = {
    "ink": "#010101",
    "soft": "#010102",
    "rule": "#010103",
    "paper": "#010104",
    "reference": "#010111",
    "strong": "#010112",
    "challenger": "#010113",
    "repaired": "#010114",
    "second_opinion": "#010115",
    "exact": "#01011a",
    "sanity": "#010116",
    "other": "#010117",
    "best": "#010118",
    "tone": "#010119",
    **{f"band-{i}": f"#0102{i:02x}" for i in range(surface.BANDS)},
}

#: Figure size in points; at phone width (340 px) 11 pt text still renders at 9 px.
WIDTH, HEIGHT = 420.0, 290.0
FONT = 11.0

_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "maskaudit",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": FONT,
    "axes.linewidth": 0.8,
    "path.simplify": True,
}


def share_axes(xlabel: str, *, width: float = 0.63) -> tuple[Figure, Axes]:
    """A figure whose upward axis is a share from 0 to 100 %, with room for the names of lines on the right."""
    figure, axes = plain_axes(xlabel, width=width)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    return figure, axes


def plain_axes(xlabel: str, *, width: float = 0.86) -> tuple[Figure, Axes]:
    """A figure with a grid of levels; `width` is the share of it that the axes take."""
    figure, axes = bare_axes(HEIGHT, (0.105, 0.155, width, 0.765))
    axes.grid(axis="y", color=COLOURS["rule"], lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, color=COLOURS["soft"], fontsize=FONT)
    return figure, axes


def bare_axes(height: float, box: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """A figure of `height` points whose axes, in `box`, have no frame but a line below."""
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["soft"])
    axes.tick_params(length=0, colors=COLOURS["soft"], labelsize=FONT - 1)
    return figure, axes


def label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
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
        axes.text(1.03, at, name, transform=axes.transAxes, va="center", color=COLOURS[colour], fontsize=FONT - 0.5)


@contextmanager
def drawing() -> Iterator[None]:
    """Our matplotlib settings, undone afterwards; names in scripts that its font lacks are the browser's to draw."""
    with matplotlib.style.context(["default", _SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def svg(figure: Figure, name: str, title: str, description: str) -> Markup:
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
    for variable, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"\n\s*", "\n", body)
    box = view_box.group(1) if view_box else f"0 0 {WIDTH} {HEIGHT}"
    head = Markup('<svg role="img" aria-labelledby="{0}-title {0}-desc" viewBox="{1}">').format(name, box)
    return Markup('{0}<title id="{1}-title">{2}</title><desc id="{1}-desc">{3}</desc>{4}</svg>').format(
        head, name, escape(title), escape(description), Markup(body)
    )


def _rounded(match: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point: half the size, no visible change."""
    return re.sub(r"-?\d+\.\d{3,}", lambda value: f"{float(value.group()):.2f}".rstrip("0").rstrip("."), match.group())
