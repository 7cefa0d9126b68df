"""The walks of the probe `blind-spots`: confidence on the way to another class, and the images at both ends."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from markupsafe import Markup

from maskaudit.report import coerce, images, words
from maskaudit.report.canvas import COLOURS, drawing, share_axes, svg

#: Most walks that are drawn, and steps of one.
_MAX_WALKS, _MAX_STEPS = 8, 500
_PANELS = ("source", "end", "goal")


@dataclass(frozen=True)
class WalkView:
    """One walk in words, with its path as (way covered, confidence) and three images as data URIs, if it has any."""

    label: str
    goal_label: str
    left: str
    confidence: str
    lowest: str
    path: tuple[tuple[float, float], ...]
    panels: tuple[tuple[str, str], ...]


def read(document: dict[str, Any]) -> tuple[WalkView, ...]:
    """The walks in the document, as far as they can be read."""
    probe = next((p for p in coerce.mappings(document.get("probes")) if p.get("rule") == "blind-spots"), {})
    found = coerce.mappings(coerce.mapping(probe.get("details")).get("walks"))
    return tuple(walk for item in found[:_MAX_WALKS] if (walk := _walk(item)) is not None)


def draw(walks: tuple[WalkView, ...]) -> Markup | None:
    """Confidence against the share of the way covered, one line per walk; None without walks."""
    if not walks:
        return None
    with drawing():
        figure, axes = share_axes("Share of the way to the other class", width=0.86)
        for walk in walks:
            axes.plot(*zip(*walk.path, strict=True), color=COLOURS["best"], lw=1.4)
            axes.plot(*walk.path[-1], "o", ms=5, color=COLOURS["best"])
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        ends = "; ".join(f"{w.label} towards {w.goal_label}: {w.left} left, confidence {w.confidence}" for w in walks)
        return svg(figure, "blind", "Confidence on the way to another class", ends + ".")


def _walk(item: dict[str, Any]) -> WalkView | None:
    pairs = [[_share(value) for value in coerce.items(pair)] for pair in coerce.items(item.get("path"))[:_MAX_STEPS]]
    path = tuple((pair[0], pair[1]) for pair in pairs if len(pair) == 2 and None not in pair)
    figures = [_share(item.get(key)) for key in ("left", "confidence", "lowest_on_line")]
    if len(path) < 2:
        return None
    left, confidence, lowest = ("?" if figure is None else words.percent(figure) for figure in figures)
    labels = [coerce.text(item.get(key), "?") for key in ("label", "goal_label")]
    return WalkView(labels[0], labels[1], left, confidence, lowest, path, _images(item))  # type: ignore[arg-type]


def _share(value: Any) -> float | None:
    number = coerce.number(value)
    return None if number is None else min(max(number, 0.0), 1.0)


def _images(item: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    shape = images.shape(item.get("shape"))
    if shape is None:
        return ()
    read = [(name, images.pixels(item.get(name), prod(shape))) for name in _PANELS]
    return tuple((name, images.png_uri(found, *shape)) for name, found in read if found is not None)
