"""JSON and TOML from untrusted files: bounded in size, depth and length of numbers, or one sentence.

What comes out are plain dicts, lists, texts, numbers, flags and None; `maskaudit.declared` says what they may be.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from maskaudit.declared.kinds import CONTROL, MAX_NUMBER, MAX_TEXT, shown
from maskaudit.errors import InputError, MaskauditError

#: Largest document that is parsed where the caller sets no other limit, in bytes.
MAX_BYTES = 64 << 20
#: How deep lists and objects may lie inside each other.
MAX_DEPTH = 64
#: Most values in a document, counted by its commas and brackets before anything is built (a value takes up to 72
#: bytes).
MAX_VALUES = 5_000_000

#: Most parts of a dotted key of TOML, of which the parser keeps every beginning.
MAX_KEY_PARTS = 16
_LONG_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{MAX_KEY_PARTS}}}""")

_HUGE = 10**MAX_NUMBER
#: Lone surrogates cannot be written as UTF-8; NUL ends texts in C libraries.
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


def writable(text: str) -> str:
    """The text without what `parse_json` refuses in one: lone surrogates and NUL become U+FFFD."""
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def parse_json(
    content: bytes | str, where: str, *, most: int = MAX_BYTES, error: type[MaskauditError] = InputError
) -> Any:
    """JSON from an untrusted file: bounded in size, depth and length of numbers; every number finite.

    Refused as well: a name twice in one object, names with control characters, texts with lone surrogates or NUL.

    Args:
        content: the document, UTF-8.
        where: the file, for messages.
        most: largest size in bytes (characters of a text).
        error: what is raised.

    Raises:
        MaskauditError: of the class `error`, one sentence.
    """
    read = partial(
        json.loads, parse_int=_int, parse_float=_float, parse_constant=_no_constant, object_pairs_hook=_object
    )
    return _parsed(read, "JSON", content, where, most, error)


def parse_toml(
    content: bytes | str, where: str, *, most: int = MAX_BYTES, error: type[MaskauditError] = InputError
) -> Any:
    """TOML from an untrusted file under the same limits; see `parse_json`."""
    return _parsed(_toml, "TOML", content, where, most, error)


def _toml(text: str) -> Any:
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {MAX_KEY_PARTS} parts")
    return tomllib.loads(text, parse_float=_float)


def _parsed(
    loads: Callable[[str], Any], language: str, content: bytes | str, where: str, most: int, error: type[MaskauditError]
) -> Any:
    try:
        document = loads(_text(content, where, most, error))
        check_tree(document)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} is not valid {language}: {_reason(problem)}.") from None
    return document


def check_tree(document: Any) -> None:
    """Raise ValueError where a parsed document is deeper, or holds other numbers, names or texts, than allowed."""
    level = [document]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if _UNWRITABLE.search(item):
                    raise ValueError("a text holds a NUL or half a surrogate pair")
            elif isinstance(item, dict):
                for name in item:
                    check_name(name)
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif type(item) is int and abs(item) >= _HUGE:
                raise ValueError("a number has too many digits")
            elif type(item) is float and not math.isfinite(item):
                raise ValueError("a number is not finite")
        if not below:
            return
        level = below
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def check_name(name: object) -> None:
    """Raise ValueError for a name of a field that is too long or holds control characters."""
    if not isinstance(name, str) or len(name) > MAX_TEXT or CONTROL.search(name):
        raise ValueError(f"the name {shown(name)} is too long or holds control characters")


def _text(content: bytes | str, where: str, most: int, error: type[MaskauditError]) -> str:
    if len(content) > most:
        raise error(f"{where} is larger than {_size(most)} and is refused.")
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    if sum(map(text.count, ",[{=")) > MAX_VALUES:
        raise error(f"{where} holds more than {MAX_VALUES} values and is refused.")
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {shown(twice)} appears twice in one object")
    return found


def _int(digits: str) -> int:
    if len(digits) > MAX_NUMBER:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits) if len(digits) <= MAX_NUMBER else math.nan
    if not math.isfinite(number):
        raise ValueError(f"the number {shown(digits)} is too long or not finite")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _reason(problem: Exception) -> str:
    if isinstance(problem, RecursionError):
        return f"it is nested more than {MAX_DEPTH} deep"
    if isinstance(problem, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {problem.start})"
    if "set_int_max_str_digits" in str(problem):
        return f"it holds a number of more than {MAX_NUMBER} digits"
    words = " ".join(CONTROL.sub("�", str(problem)).split())
    return words if len(words) <= 200 else words[:199] + "…"


def _size(most: int) -> str:
    return f"{most >> 20} MiB" if most >= 1 << 20 else f"{most} bytes"
