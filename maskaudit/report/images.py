"""Image strips: clean, adversarial and difference pixels from the document as PNG data URIs."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from PIL import Image

from maskaudit.report import coerce

#: Largest image side in pixels and most strips: with the byte limit they keep the report below 1 MB.
_MAX_SIDE = 256
_MAX_STRIPS = 8
_MAX_BYTES = 360_000

_PANELS = ("clean", "adversarial", "difference")


@dataclass(frozen=True)
class Strip:
    """One point: three images as data URIs, with the model's answers."""

    index: str
    label: str
    predicted: str
    attack: str
    distance: str
    panels: tuple[tuple[str, str], ...]


def strips(value: Any) -> tuple[Strip, ...]:
    """The strips whose pixels can be read, as many as fit."""
    result: list[Strip] = []
    spent = 0
    for item in coerce.mappings(value):
        strip = _strip(item)
        if strip is None:
            continue
        spent += sum(len(uri) for _, uri in strip.panels)
        if spent > _MAX_BYTES or len(result) == _MAX_STRIPS:
            break
        result.append(strip)
    return tuple(result)


def _strip(item: dict[str, Any]) -> Strip | None:
    size = shape(item.get("shape"))
    if size is None:
        return None
    panels = []
    for name in _PANELS:
        found = pixels(item.get(name), prod(size))
        if found is None:
            return None
        panels.append((name, png_uri(found, *size)))
    distance = coerce.number(item.get("distance"))
    return Strip(
        coerce.text(item.get("index"), "?"),
        coerce.text(item.get("label"), "?"),
        coerce.text(item.get("predicted"), "?"),
        coerce.text(item.get("attack"), "unknown attack"),
        "" if distance is None else f"{distance:.3g}",
        tuple(panels),
    )


def shape(value: Any) -> tuple[int, int, int] | None:
    """Channels, height and width of an image that a report shows."""
    sizes = [coerce.count(size) for size in coerce.items(value)]
    if len(sizes) != 3 or not all(1 <= size <= _MAX_SIDE for size in sizes):
        return None
    return sizes[0], sizes[1], sizes[2]


def pixels(value: Any, size: int) -> bytes | None:
    """So many pixels from base64; None where the text holds anything else."""
    if not isinstance(value, str) or len(value) > 4 * (size // 3 + 2):
        return None
    try:
        found = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if len(found) == size else None


def png_uri(pixels: bytes, channels: int, height: int, width: int) -> str:
    """A PNG of `pixels` (uint8, channels × height × width) as a data URI.

    Three channels are red, green, blue; for any other number the mean of the channels is shown in grey.
    """
    planes = np.frombuffer(pixels, np.uint8).reshape(channels, height, width)
    shown = np.moveaxis(planes, 0, -1) if channels == 3 else planes.mean(axis=0).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(shown).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
