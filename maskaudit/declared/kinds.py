"""Kinds of single values in what files say: flags, numbers, texts, choices, dates; see `maskaudit.declared`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: Longest number, in characters: more than any float64 or 64-bit integer needs.
MAX_NUMBER = 100
#: Longest text where a declaration sets no other limit, and longest name of a field, in characters.
MAX_TEXT = 1000
#: Longest rendering of a refused value in a message, in characters.
SHOWN = 60

#: Characters that steer a terminal, break or reorder lines, or cannot be written as UTF-8.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]")


class Refused(ValueError):
    """A value that is not of its kind.

    Attributes:
        sentence: what was expected and what was found, after the name of the field and without it.
        path: names and positions from the outermost record to the value.
    """

    def __init__(self, sentence: str, *path: str | int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.path = path

    def inside(self, step: str | int) -> Refused:
        """The same refusal, seen from the list or record around the value."""
        return Refused(self.sentence, step, *self.path)

    def place(self) -> str:
        """The path as `stages[3].loss`; empty at the top."""
        words = "".join(f"[{step}]" if isinstance(step, int) else f".{_name(step)}" for step in self.path)
        return words.removeprefix(".")


class Kind(ABC, Generic[T]):
    """What a value must be; frozen data."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """The words after "must be" in a refusal."""

    @abstractmethod
    def read(self, value: Any) -> T:
        """The value as the program takes it; raises `Refused`."""

    def refusal(self, value: Any) -> Refused:
        """The exception for a value that is not of this kind."""
        return Refused(f"must be {self.expected}; found {shown(value)}")


@dataclass(frozen=True)
class Flag(Kind[bool]):
    """`true` or `false`."""

    @property
    def expected(self) -> str:
        return "true or false"

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.refusal(value)
        return value


@dataclass(frozen=True)
class Whole(Kind[int]):
    """A whole number from `low` to `high`, both included; 2.0 is none."""

    low: int
    high: int

    @property
    def expected(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def read(self, value: Any) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise self.refusal(value)
        return value


@dataclass(frozen=True)
class Number(Kind[float]):
    """A finite number from `low` (`above`: more than that) to `high`; `quotient` also takes text such as "8/255"."""

    low: float
    high: float
    above: bool = False
    quotient: bool = False

    @property
    def expected(self) -> str:
        start = f"above {self.low:g} and at most {self.high:g}" if self.above else f"from {self.low:g} to {self.high:g}"
        return f"a number {start}" + (', or a quotient such as "8/255"' if self.quotient else "")

    def read(self, value: Any) -> float:
        number: Any = _quotient(value) if self.quotient and isinstance(value, str) else value
        if type(number) not in (int, float) or not self.low <= number <= self.high:  # NaN compares false
            raise self.refusal(value)
        if self.above and number == self.low:
            raise self.refusal(value)
        return float(number)


#: Bytes of a unit, by its letter and whether an "i" follows.
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?) ?([kmgt]?)(i?)b?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Size(Whole):
    """A number of bytes; as text also with a unit: 4GB (4·10⁹), 512MiB (512·2²⁰)."""

    @property
    def expected(self) -> str:
        return f'a number of bytes from {self.low} to {self.high}, or a size such as "4GB"'

    def read(self, value: Any) -> int:
        number = value
        if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip()[:MAX_NUMBER])):
            figure, unit, binary = found.groups()
            number = int(float(figure) * (1024 if binary else 1000) ** _UNITS[unit.lower()])
        try:
            return super().read(number)
        except Refused:
            raise self.refusal(value) from None


@dataclass(frozen=True)
class Text(Kind[str]):
    """A text of `shortest` to `longest` characters, on one line unless `lines`, without control characters."""

    longest: int = MAX_TEXT
    shortest: int = 0
    lines: bool = False

    @property
    def expected(self) -> str:
        span = f"{self.shortest} to {self.longest}" if self.shortest else f"at most {self.longest}"
        return f"a text of {span} characters without control characters"

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or not self.shortest <= len(value.strip() if self.shortest else value):
            raise self.refusal(value)
        plain = value.replace("\n", "").replace("\t", "") if self.lines else value
        if len(value) > self.longest or CONTROL.search(plain):
            raise self.refusal(value)
        return value


@dataclass(frozen=True, init=False)
class Choice(Kind[str]):
    """One of the given texts."""

    choices: tuple[str, ...]

    def __init__(self, *choices: str) -> None:
        object.__setattr__(self, "choices", choices)

    @property
    def expected(self) -> str:
        return "one of " + ", ".join(self.choices)

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.choices:
            raise self.refusal(value)
        return value


@dataclass(frozen=True)
class Day(Kind[date]):
    """A date as YYYY-MM-DD, in quotes or as a TOML date."""

    @property
    def expected(self) -> str:
        return "a date such as 2027-01-31"

    def read(self, value: Any) -> date:
        if isinstance(value, date):
            return value.date() if isinstance(value, datetime) else value
        try:
            return date.fromisoformat(value)
        except (TypeError, ValueError):
            raise self.refusal(value) from None


@dataclass(frozen=True)
class Anything(Kind[Any]):
    """Any value, taken over as it is: only for what is shown or kept, never acted on."""

    @property
    def expected(self) -> str:
        return "any value"

    def read(self, value: Any) -> Any:
        return value


def shown(value: Any) -> str:
    """A refused value for a message: on one line, without control characters, at most `SHOWN` characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        cut = value if len(value) <= SHOWN else value[: SHOWN - 1] + "…"
        return f'"{CONTROL.sub("�", cut)}"'
    if isinstance(value, int):
        return str(value) if abs(value) < 10**MAX_NUMBER else "a number of too many digits"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)} entries"
    return f"an object of {len(value)} fields" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _quotient(value: str) -> float | None:
    top, slash, bottom = value.partition("/")
    if len(value) > MAX_NUMBER:
        return None
    try:
        return float(top) / float(bottom) if slash else float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _name(step: str) -> str:
    return CONTROL.sub("�", step if len(step) <= SHOWN else step[: SHOWN - 1] + "…")
