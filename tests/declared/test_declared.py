"""The reader of declared fields, and bounded JSON and TOML."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from maskaudit.declared import (
    Anything,
    Checked,
    Choice,
    Day,
    Either,
    Flag,
    Items,
    Kind,
    Number,
    Optional,
    Record,
    Size,
    Table,
    Text,
    Whole,
    read,
    walk,
)
from maskaudit.declared.parsing import MAX_VALUES, parse_json, parse_toml
from maskaudit.errors import InputError, UsageError

READ: list[tuple[Kind[Any], Any, Any]] = [
    (Flag(), True, True),
    (Whole(1, 3), 3, 3),
    (Number(0, 1), 1, 1.0),
    (Size(1, 2**50), 4096, 4096),
    (Size(1, 2**50), "4096", 4096),
    (Size(1, 2**50), "1.5 GB", 1_500_000_000),
    (Size(1, 2**50), "512MiB", 2**29),
    (Number(0, 1, quotient=True), "8/255", 8 / 255),
    (Text(), "ε — β", "ε — β"),
    (Text(lines=True), "a\n\tb", "a\n\tb"),
    (Choice("a", "b"), "b", "b"),
    (Day(), "2027-01-31", date(2027, 1, 31)),
    (Anything(), [{}], [{}]),
    (Optional(Whole(0, 1)), None, None),
    (Either(Whole(0, 1), Text()), "x", "x"),
    (Items(Whole(0, 9), 3), [1, 2], (1, 2)),
    (Items(Text(), 3, single=True), "x", ("x",)),
    (Table(Whole(0, 9)), {"a": 1}, {"a": 1}),
    (Record({"a": Whole(0, 9), "b": Text()}), {"a": 1}, {"a": 1}),
    (Record({"a": Whole(0, 9)}, ignore_unknown=True), {"a": 1, "z": 2}, {"a": 1}),
]


@pytest.mark.parametrize(("kind", "value", "expected"), READ)
def test_values_of_their_kind_are_read(kind: Kind[Any], value: Any, expected: Any) -> None:
    assert read(kind, value, "f") == expected


REFUSED: list[tuple[Kind[Any], Any, str]] = [
    (Flag(), 1, "f: its content must be true or false; found 1."),
    (Whole(1, 3), True, "must be a whole number from 1 to 3; found true."),
    (Whole(1, 3), 2.0, "found 2."),
    (Whole(1, 3), 10**5000, "found a number of too many digits."),
    (
        Size(1, 2**50),
        "many",
        'must be a number of bytes from 1 to 1125899906842624, or a size such as "4GB"; found "many".',
    ),
    (Size(1, 2**50), "9" * 400, "must be a number of bytes"),
    (Size(1, 2**50), "-1GB", 'found "-1GB".'),
    (Number(0, 1), float("nan"), "must be a number from 0 to 1; found nan."),
    (Number(0, 1), "0.5", 'found "0.5".'),
    (Number(0, 1, above=True), 0, "must be a number above 0 and at most 1; found 0."),
    (Number(0, 1e300), 10**400, "found a number of too many digits."),
    (Number(0, 9, quotient=True), "1/0", 'found "1/0".'),
    (Text(3), "abcd", 'must be a text of at most 3 characters without control characters; found "abcd".'),
    (Text(shortest=1), " ", "a text of 1 to 1000 characters"),
    (Text(), "a\nb", 'found "a�b".'),
    (Text(), "\ud800", 'found "�".'),
    (Choice("a", "b"), "c", 'must be one of a, b; found "c".'),
    (Choice("a", "b"), ["a"], "found a list of 1 entries."),
    (Day(), "tomorrow", 'must be a date such as 2027-01-31; found "tomorrow".'),
    (Either(Whole(0, 1), Text(2)), [], "a whole number from 0 to 1, or a text of at most 2"),
    (Either(Whole(0, 1), Items(Text(), 3)), [1], "f: [0] must be a text"),
    (Checked(Whole(0, 9), "an even number", lambda n: n % 2 == 0), 3, "must be an even number; found 3."),
    (Items(Whole(0, 9), 2), [1, 2, 3], "must be a list of 0 to 2 entries; found a list of 3 entries."),
    (Items(Whole(0, 9), 2), [1, "x"], 'f: [1] must be a whole number from 0 to 9; found "x".'),
    (Table(Whole(0, 9), 1), {"a": 1, "b": 2}, "an object of at most 1 entries; found an object of 2 fields."),
    (Table(Whole(0, 9)), {"a\n": 1}, "without control characters"),
    (Record({"stages": Items(Record({"loss": Text(3)}), 3)}), {"stages": [{"loss": 7}]}, "f: stages[0].loss must be"),
    (Record({"eps": Flag()}), {"epps": True}, "f: epps is not a known field (did you mean eps?)."),
    (Record({"eps": Flag()}), {"\x1b": True}, "f: � is not a known field (known are eps)."),
    (Record({"eps": Flag()}, required=("eps",)), {}, "f: eps is missing."),
    (Record({"eps": Flag()}), [], "must be an object with the fields eps; found a list of 0 entries."),
]


@pytest.mark.parametrize(("kind", "value", "message"), REFUSED, ids=range(len(REFUSED)))
def test_others_are_refused_in_one_sentence(kind: Kind[Any], value: Any, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        read(kind, value, "f", error=UsageError)
    assert message in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_a_declaration_can_be_walked() -> None:
    kind = Record({"a": Optional(Record({"b": Items(Whole(0, 1))})), "c": Table(Flag())})
    assert [path for path, _ in walk(kind)] == [(), ("a",), ("a", "b"), ("a", "b", 0), ("c",), ("c", "*")]


BAD_JSON = {
    "no JSON": (b"{", "is not valid JSON"),
    "empty": (b"", "is not valid JSON"),
    "no UTF-8": (b'"\xff"', "it is not UTF-8 text (byte 1)"),
    "NaN": (b"[NaN]", "NaN is not a number of JSON"),
    "infinite": (b"[1e999]", 'the number "1e999" is too long or not finite'),
    "5000 digits": (b"1" * 5000, "a number has 5000 digits"),
    "4000 decimals": (b"0." + b"1" * 4000, "is too long or not finite"),
    "NUL": (b'["\\u0000"]', "a NUL or half a surrogate pair"),
    "lone surrogate": (b'["\\udc80"]', "a NUL or half a surrogate pair"),
    "control character in a name": (b'{"a\\u001b": 1}', 'the name "a�" is too long or holds control characters'),
    "long name": (b'{"' + b"a" * 2000 + b'": 1}', "is too long"),
    "twice": (b'{"a": {"b": 1, "b": 2}}', 'the name "b" appears twice in one object'),
    "deep": (b"[" * 900 + b"]" * 900, "nested more than 64 deep"),
    "very deep": (b'{"a":' * 200_000, "nested more than 64 deep"),
    "many values": (b"[" + b"0," * (MAX_VALUES + 1) + b"0]", "holds more than"),
}


@pytest.mark.parametrize(("content", "message"), BAD_JSON.values(), ids=BAD_JSON)
def test_json_is_bounded(content: bytes, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse_json(content, "a.json")
    assert str(refusal.value).startswith("a.json ")
    assert message in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_json_of_the_allowed_depth_and_size_is_read() -> None:
    document: Any = 0.1
    for _ in range(64):
        document = [document]
    assert parse_json(str(document), "a.json", most=500) == document
    with pytest.raises(InputError, match="larger than 100 bytes"):
        parse_json(str(document), "a.json", most=100)


@pytest.mark.parametrize(
    "content", ["a = ", "a = " + "1" * 5000, "a = inf", "a = " + "[" * 900, "a = 1\na = 2", '"a\\u001b" = 1', b"\xff"]
)
def test_toml_is_bounded(content: str | bytes) -> None:
    with pytest.raises(UsageError, match=r"^a\.toml is not valid TOML: "):
        parse_toml(content, "a.toml", error=UsageError)
    for key in ("a" + ".a" * 5000, "a . 'b' . \"c\"." * 6 + "d", "[" + "a." * 20 + "b]"):
        with pytest.raises(UsageError, match="more than 16 parts"):
            parse_toml(f"{key} = 1", "a.toml", error=UsageError)
    assert parse_toml("a" + ".a" * 15 + " = 1\nb = '" + "one two. " * 40 + "'", "a.toml")
    assert parse_toml('day = 2027-01-31\neps = "8/255"', "a.toml") == {"day": date(2027, 1, 31), "eps": "8/255"}
