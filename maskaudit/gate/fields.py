"""What the keys of the gate's configuration mean: one reader per key, which says what it expects.

A reader takes a parsed TOML value and returns the value that the audit takes, or
raises ValueError with the words for "expected …".
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from typing import Any

from maskaudit.errors import UsageError

Reader = Callable[[Any], Any]


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text in quotes")
    return value


def flag(value: Any) -> bool:
    """`true` or `false`."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def whole(value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a whole number")
    return value


def fraction(value: Any) -> float:
    """A finite number, or a quotient in quotes such as "8/255"."""
    number = value
    if isinstance(value, str):
        top, slash, bottom = value.partition("/")
        try:
            number = float(top) / float(bottom) if slash else float(value)
        except (ValueError, ZeroDivisionError):
            number = None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise ValueError('a number such as 0.03 or "8/255"')
    return float(number)


def share(value: Any) -> float:
    """A fraction between 0 and 1."""
    try:
        number = fraction(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError("a fraction between 0 and 1, such as 0.53")
    return number


def numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers, at least one."""
    if not isinstance(value, list) or not value:
        raise ValueError("a list of numbers such as [0.49, 0.48, 0.45]")
    return tuple(fraction(item) for item in value)


def pair(value: Any) -> tuple[float, float]:
    """Two numbers, the smaller first."""
    found = numbers(value) if isinstance(value, list) and len(value) == 2 else ()
    if len(found) != 2 or not found[0] < found[1]:
        raise ValueError("two numbers, smallest first, such as [0, 1]")
    return found[0], found[1]


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts; a single text stands for a list of one."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) and item.strip() for item in items):
        raise ValueError("a list of texts in quotes")
    return tuple(items)


def day(value: Any) -> date:
    """A date as YYYY-MM-DD, in quotes or as a TOML date."""
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError("a date such as 2027-01-31") from None


def one_of(*choices: str) -> Reader:
    """A reader for one of the given texts."""

    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return str(value)

    return read


def read_table(
    table: Any, readers: Mapping[str, Reader], place: str, *, required: Iterable[str] = ()
) -> dict[str, Any]:
    """The values of a table, each through its reader.

    Args:
        table: what the TOML file holds there.
        readers: the keys that are known there.
        place: what the table is called in errors, for example `models[2] of maskaudit.toml`.
        required: keys that must be there.

    Raises:
        UsageError: for an unknown key, a value of the wrong type, or a missing key.
    """
    if not isinstance(table, dict):
        raise UsageError(f"{place} must be a table with the keys {', '.join(readers)}, got {shown(table)}.")
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in readers:
            close = difflib.get_close_matches(key, readers, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UsageError(f"Unknown key {key!r} in {place}{hint}; known are {', '.join(readers)}.")
        try:
            found[key] = readers[key](value)
        except ValueError as error:
            raise UsageError(f"{key} in {place} must be {error}, got {shown(value)}.") from None
    for key in required:
        if key not in found:
            raise UsageError(f"{place} lacks the key {key!r}; add {key} = {_EXAMPLES[key]}.")
    return found


def shown(value: Any) -> str:
    """A TOML value for an error, cut to a readable length."""
    words = repr(value) if not isinstance(value, (date, bool)) else str(value).lower()
    return words if len(words) <= 60 else words[:57] + "…"


_EXAMPLES = {
    "model": '"model.safetensors"',
    "expires": '"2027-01-31"',
    "reason": '"why this is accepted for now"',
    "rule": '"zero-gradient"',
}
