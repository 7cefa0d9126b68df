"""What a renderer shows of a value: one harmless line, a figure, or nothing.

Files are held against their declaration before they come here (`maskaudit.report.reading`); documents that a program
hands over in memory are not. Their strings come from model files and from other people either way. These functions
never raise on a value of the wrong type, and the text that they return is one line without anything that could steer
a terminal or reorder what a reader sees.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from maskaudit.results import Rate

#: Longest text taken over from a document, in characters: keeps a hostile report below the size limit.
TEXT_LIMIT = 2000

#: Terminal control sequences (ECMA-48 CSI and OSC), removed as a whole before single control characters.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x9b[0-?]*[ -/]*[@-~]")

#: Characters that are not allowed in XML, steer a terminal, or reorder text (bidirectional overrides); lone surrogates
#: cannot be written as UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\uffff\ud800-\udfff]"
)


def text(value: Any, default: str = "") -> str:
    """One line of harmless text from a string or number; `default` for anything else or for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        value = str(value) if abs(value) < 10**TEXT_LIMIT else ""
    elif isinstance(value, float):
        value = f"{value:.6g}" if math.isfinite(value) else ""
    if not isinstance(value, str):
        return default
    line = " ".join(_UNPRINTABLE.sub("", _ESCAPES.sub("", value[: 2 * TEXT_LIMIT])).split())
    if len(line) > TEXT_LIMIT:
        line = line[: TEXT_LIMIT - 1] + "…"
    return line or default


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def integer(value: Any) -> int | None:
    """A whole number, or None."""
    result = number(value)
    return int(result) if result is not None and result == int(result) else None


def count(value: Any) -> int:
    """A whole number that is not negative; 0 for anything else."""
    return max(integer(value) or 0, 0)


def mapping(value: Any) -> dict[str, Any]:
    """An object, or an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """A list, or an empty one."""
    return list(value) if isinstance(value, (list, tuple)) else []


def mappings(value: Any) -> list[dict[str, Any]]:
    """The objects in a list; other members are left out."""
    return [mapping(item) for item in items(value) if isinstance(item, Mapping)]


def texts(value: Any) -> tuple[str, ...]:
    """The non-empty texts in a list, or the one text given in place of a list."""
    members = [value] if isinstance(value, str) else items(value)
    return tuple(line for line in map(text, members) if line)


def rate(value: Any) -> Rate | None:
    """A share with its interval; None unless `value` holds a figure in [0, 1].

    Where the interval is missing or does not contain the figure, `n` is 0 and no interval is shown.
    """
    fields = mapping(value)
    share = number(fields.get("value"))
    if share is None or not 0 <= share <= 1:
        return None
    low, high = number(fields.get("low")), number(fields.get("high"))
    if low is None or high is None or not 0 <= low <= share <= high <= 1:
        return Rate(share, share, share, 0)
    return Rate(share, low, high, count(fields.get("n")))


def slack(rule: dict[str, Any], screen: dict[str, Any], level: str) -> float | None:
    """The slack that a report's rule allows at a level; older reports state one for both levels."""
    own = number(mapping(mapping(rule.get("limits")).get(level)).get("slack"))
    return own if own is not None else number(rule.get("slack" if screen.get("fired") is True else "gross_slack"))
