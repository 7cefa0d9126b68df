"""Image strips: clean, adversarial and difference pixels from the document as PNG data URIs."""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from dataclasses import dataclass
from math import prod
from typing import Any

from maskaudit.report import coerce

#: Largest image side in pixels and most strips: with the byte limit they keep the report below 1 MB.
_MAX_SIDE = 256
_MAX_STRIPS = 8
_MAX_BYTES = 360_000

_PANELS = ("clean", "adversarial", "difference")


@dataclass(frozen=True)
class Strip:
    """One point: three images as data URIs, with what the model said."""

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
    shape = [coerce.count(size) for size in coerce.items(item.get("shape"))]
    if len(shape) != 3 or not all(1 <= size <= _MAX_SIDE for size in shape):
        return None
    panels = []
    for name in _PANELS:
        pixels = _pixels(item.get(name), prod(shape))
        if pixels is None:
            return None
        panels.append((name, png_uri(pixels, *shape)))
    distance = coerce.number(item.get("distance"))
    return Strip(
        coerce.text(item.get("index"), "?"),
        coerce.text(item.get("label"), "?"),
        coerce.text(item.get("predicted"), "?"),
        coerce.text(item.get("attack"), "unknown attack"),
        "" if distance is None else f"{distance:.3g}",
        tuple(panels),
    )


def _pixels(value: Any, size: int) -> bytes | None:
    if not isinstance(value, str) or len(value) > 4 * (size // 3 + 2):
        return None
    try:
        pixels = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    return pixels if len(pixels) == size else None


def png_uri(pixels: bytes, channels: int, height: int, width: int) -> str:
    """A PNG of `pixels` (uint8, channels × height × width) as a data URI.

    Three channels are red, green, blue; for any other number the mean of the channels is shown in grey.
    """
    plane = height * width
    planes = [pixels[i * plane : (i + 1) * plane] for i in range(channels)]
    if channels == 3:
        interleaved = bytes(value for triple in zip(*planes, strict=True) for value in triple)
        depth, colour = 3, 2
    else:
        interleaved = bytes(sum(values) // channels for values in zip(*planes, strict=True))
        depth, colour = 1, 0
    row = width * depth
    raw = b"".join(b"\x00" + interleaved[y * row : (y + 1) * row] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(raw, 9)) + _chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode("ascii")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
