"""The one reader of what files say: declared fields, each with type, range, size and allowed values.

A file (metadata of a model, report, plan, configuration) may come from anyone. What is read from it
is declared as a `Record` of named `Kind`s, and nothing reaches the program that is not declared:

    BALL = Record({"norm": Choice("Linf", "L2"), "eps": Number(0, 1e6, above=True)}, required=("norm",))
    document = parse_json(content, "audit.json")        # bounded JSON, or InputError
    ball = read(BALL, document["threat"], "audit.json") # typed values in range, or InputError

A refusal is one sentence: `audit.json: eps must be a number above 0 and at most 1e+06; found "8/255".`
The parts of a kind are plain data (`low`, `longest`, `choices`, …), so that a test can walk a declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar

from maskaudit.declared.kinds import (
    CONTROL,
    MAX_TEXT,
    Anything,
    Choice,
    Day,
    Flag,
    Kind,
    Number,
    Refused,
    Size,
    Text,
    Whole,
)
from maskaudit.errors import InputError, MaskauditError, meant

__all__ = [
    "Anything", "Checked", "Choice", "Day", "Either", "Flag", "Items", "Kind", "Number", "Optional", "Record",
    "Refused", "Size", "Table", "Text", "Whole", "read", "walk",
]  # fmt: skip

T = TypeVar("T")
S = TypeVar("S")

#: Most entries of a list or table where a declaration sets no other limit.
MAX_ITEMS = 10_000


@dataclass(frozen=True)
class Optional(Kind[T | None], Generic[T]):
    """A value of a kind, or null."""

    of: Kind[T]

    @property
    def expected(self) -> str:
        return f"null or {self.of.expected}"

    def read(self, value: Any) -> T | None:
        return None if value is None else self.of.read(value)


@dataclass(frozen=True)
class Either(Kind[T | S], Generic[T, S]):
    """A value of one of two kinds; a refusal inside a list or record of either is that list's own."""

    first: Kind[T]
    second: Kind[S]

    @property
    def expected(self) -> str:
        return f"{self.first.expected}, or {self.second.expected}"

    def read(self, value: Any) -> T | S:
        try:
            return self.first.read(value)
        except Refused as refusal:
            if refusal.path:
                raise
        try:
            return self.second.read(value)
        except Refused as refusal:
            if refusal.path:
                raise
        raise self.refusal(value)


@dataclass(frozen=True)
class Checked(Kind[T], Generic[T]):
    """A value of a kind for which `holds` is true as well; `words` say what it must be."""

    of: Kind[T]
    words: str
    holds: Callable[[T], bool] = field(compare=False)

    @property
    def expected(self) -> str:
        return self.words

    def read(self, value: Any) -> T:
        found = self.of.read(value)
        if not self.holds(found):
            raise self.refusal(value)
        return found


@dataclass(frozen=True)
class Items(Kind[tuple[T, ...]], Generic[T]):
    """A list of `least` to `most` values of one kind; `single`: one value may stand for a list of one."""

    of: Kind[T]
    most: int = MAX_ITEMS
    least: int = 0
    single: bool = False

    @property
    def expected(self) -> str:
        span = str(self.most) if self.least == self.most else f"{self.least} to {self.most}"
        return f"a list of {span} entries"

    def read(self, value: Any) -> tuple[T, ...]:
        members = [value] if self.single and not isinstance(value, (list, tuple)) else value
        if not isinstance(members, (list, tuple)) or not self.least <= len(members) <= self.most:
            raise self.refusal(value)
        return tuple(_within(n, self.of, item) for n, item in enumerate(members))


@dataclass(frozen=True)
class Table(Kind[dict[str, T]], Generic[T]):
    """An object whose names are free and whose values are of one kind; at most `most` of them."""

    of: Kind[T]
    most: int = MAX_ITEMS

    @property
    def expected(self) -> str:
        return f"an object of at most {self.most} entries"

    def read(self, value: Any) -> dict[str, T]:
        if not isinstance(value, Mapping) or len(value) > self.most:
            raise self.refusal(value)
        return {_key(name): _within(name, self.of, item) for name, item in value.items()}


@dataclass(frozen=True)
class Record(Kind[dict[str, Any]]):
    """An object with declared fields; gives those that are there.

    Attributes:
        fields: the kind of each field by its name.
        required: names that must be there.
        ignore_unknown: whether fields that are not declared are left out; otherwise they are refused.
    """

    fields: Mapping[str, Kind[Any]]
    required: tuple[str, ...] = ()
    ignore_unknown: bool = False

    @property
    def expected(self) -> str:
        return f"an object with the fields {', '.join(self.fields)}"

    def read(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self.refusal(value)
        if not self.ignore_unknown:
            for name in value:
                if name not in self.fields:
                    self._unknown(name)
        for name in self.required:
            if name not in value:
                raise Refused("is missing", name)
        return {name: _within(name, kind, value[name]) for name, kind in self.fields.items() if name in value}

    def _unknown(self, name: object) -> NoReturn:
        hint = meant(str(name)[:MAX_TEXT], self.fields, most=1) or f" (known are {', '.join(self.fields)})"
        raise Refused(f"is not a known field{hint}", str(name))


def read(kind: Kind[T], value: Any, where: str, *, error: type[MaskauditError] = InputError) -> T:
    """A value as its declaration demands.

    Args:
        kind: the declaration.
        value: parsed JSON or TOML, or anything else.
        where: the file, for the message.
        error: what is raised.

    Raises:
        MaskauditError: of the class `error`, with one sentence that names the field, what was expected and found.
    """
    try:
        return kind.read(value)
    except Refused as refusal:
        place = refusal.place()
        raise error(f"{where}: {place or 'its content'} {refusal.sentence}.") from None


def walk(kind: Kind[Any], path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Kind[Any]]]:
    """Every place in a declaration with its kind, outermost first; 0 leads into a list, "*" into a table."""
    yield path, kind
    yield from _below(kind, path)


def _below(kind: Kind[Any], path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Kind[Any]]]:
    match kind:
        case Record():
            for name, inner in kind.fields.items():
                yield from walk(inner, (*path, name))
        case Items():
            yield from walk(kind.of, (*path, 0))
        case Table():
            yield from walk(kind.of, (*path, "*"))
        case Optional() | Checked():
            yield from _below(kind.of, path)
        case Either():
            yield from _below(kind.first, path)
            yield from _below(kind.second, path)


def _within(step: str | int, kind: Kind[T], value: Any) -> T:
    try:
        return kind.read(value)
    except Refused as refusal:
        raise refusal.inside(step) from None


def _key(name: object) -> str:
    if not isinstance(name, str) or len(name) > MAX_TEXT or CONTROL.search(name):
        raise Refused(f"must have names of at most {MAX_TEXT} characters without control characters")
    return name
