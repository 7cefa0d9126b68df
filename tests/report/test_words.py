"""Figures in words, reading of odd values, and pixels."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from maskaudit.report import coerce, images, words
from maskaudit.results import Rate

from . import sample


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0.0%"), (0.0001, "<0.1%"), (0.715, "71.5%"), (0.9999, ">99.9%"), (1.0, "100.0%")]
)
def test_percent(value: float, shown: str) -> None:
    assert words.percent(value) == shown


@pytest.mark.parametrize(
    ("eps", "shown"),
    [(8 / 255, "8/255 (about 0.0314)"), (0.2, "0.2"), (0.3, "0.3"), (1 / 3, "85/255 (about 0.333)"), (None, "unknown")],
)
def test_radius(eps: float | None, shown: str) -> None:
    assert words.radius(eps) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.41, "0.4 s"), (48.3, "48 s"), (125, "2 min 05 s"), (7800, "2 h 10 min"), (None, ""), (-1, "")],
)
def test_seconds(value: float | None, shown: str) -> None:
    assert words.seconds(value) == shown


def test_the_glossary_has_every_term_once_in_order() -> None:
    names = [term for term, _ in words.TERMS]
    assert names == sorted(set(names))
    assert all(meaning.endswith(".") for _, meaning in words.TERMS)


def test_quantity() -> None:
    assert words.quantity(0.72, "share of points", True) == "72.0% of points"
    assert words.quantity(-38.12, "decades", False) == "−38.1 decades"
    assert words.quantity(None, "decades", False) == ""
    assert words.quantity(-54046.2, "log10 (median over points)", False) == "6.3 × 10⁻⁵⁴⁰⁴⁷ times (median over points)"


@pytest.mark.parametrize(("value", "shown"), [
    (7, "7"), (12_345, "12,345"), (-1.59e5, "−159,000"), (59_210.4, "59,200"), (0.0297, "0.0297"), (-3.81, "−3.81"),
    (6e-8, "6 × 10⁻⁸"), (1e-4, "10⁻⁴"), (9.99e-9, "10⁻⁸"), (2.5e12 + 0.5, "2.5 × 10¹²"),
])  # fmt: skip
def test_numbers_are_written_for_people(value: float, shown: str) -> None:
    assert words.number(value) == shown


def test_rate_without_a_sound_interval_shows_none() -> None:
    assert coerce.rate({"value": 0.5, "low": 0.6, "high": 0.9, "n": 10}) == Rate(0.5, 0.5, 0.5, 0)
    assert words.rate(coerce.rate({"value": 0.5})) == "50.0%"
    assert coerce.rate({"value": 1.5}) is None
    assert coerce.rate({"value": True}) is None


def test_text_is_one_harmless_line() -> None:
    assert coerce.text("a\x1b[31mb\x1b[0m\nc\u202ed\x9b1me\ud800") == "ab cde"
    assert coerce.text("\x1b]8;;http://x\x07link\x1b]8;;\x07") == "link"
    assert coerce.text({"a": 1}) == ""
    assert coerce.text(10**5000) == ""
    assert len(coerce.text("x" * 10_000)) == coerce.TEXT_LIMIT


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_pixels(channels: int) -> None:
    pixels = bytes(range(channels * 6))
    uri = images.png_uri(pixels, channels, 2, 3)
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert picture.size == (3, 2)
    if channels == 3:
        assert picture.getpixel((1, 0)) == (1, 7, 13)
    else:
        assert picture.getpixel((1, 0)) == sum(pixels[1::6]) // channels


@pytest.mark.parametrize(
    "damage",
    [
        {"shape": [1, 8]},
        {"shape": [1, 8, 9]},
        {"shape": [1, 10**9, 1]},
        {"clean": "%%%"},
        {"difference": None},
        {"clean": "AAAA"},
    ],
    ids=str,
)
def test_damaged_strips_are_left_out(damage: dict[str, object]) -> None:
    assert len(images.strips([{**sample.strip(0), **damage}, sample.strip(1)])) == 1
