"""What an option of an audit is; each is declared once, at its field of `maskaudit.settings`.

    eps: float | None = option(None, Number(0, 1e6, above=True), "Radius of the ball in input units.", metavar="NUMBER")

From that line come `maskaudit check --eps`, the keys `eps` of `[check]` and of the gate's configuration, the keyword of
`maskaudit.audit` and of the pytest fixture, the check of its value in all of them, and its line in the documentation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from maskaudit.declared import Checked, Either, Flag, Items, Kind, Refused, Whole
from maskaudit.errors import UsageError

#: Where options lie together: what opens the model, what it is shown and how its answers are read, and all else.
Group = Literal["model", "data", "audit"]
#: What a relative path in a configuration is relative to its folder for: a file; a file or a name that is none
#: (`digits`, `zoo:standard`, `net.py:make`); the same with `@SPEC` behind it.
Path = Literal["", "file", "source", "surrogate"]

_METADATA = "option"


@dataclass(frozen=True)
class Option:
    """One option of an audit.

    Attributes:
        key: its name in Python and TOML.
        default: its value where it is left out.
        kind: what it must be.
        help: one sentence.
        metavar: placeholder for its value in `--help`; the choices where there are some.
        flag: its name on the command line.
        group: which options it lies with.
        path: how a relative path in it is read in a configuration.
        one_model: whether the gate takes it for one model only, never for all at once.
        trusts: whether it lets a file execute code, which `check --config` refuses.
        resumes: whether an interrupted audit is gone on with only under the same value.
    """

    key: str
    default: Any
    kind: Kind[Any]
    help: str
    metavar: str = ""
    flag: str = ""
    group: Group = "audit"
    path: Path = ""
    one_model: bool = False
    trusts: bool = False
    resumes: bool = False

    @property
    def several(self) -> bool:
        """Whether the command line takes it any number of times, one entry each."""
        return isinstance(self.kind, Items) and self.kind.single

    @property
    def takes_list(self) -> bool:
        """Whether Python and TOML give it as a list."""
        return isinstance(self.kind.of if isinstance(self.kind, Checked) else self.kind, Items)

    @property
    def is_flag(self) -> bool:
        """Whether it has no value on the command line."""
        return isinstance(self.kind, Flag)

    def read(self, value: Any) -> Any:
        """A value from Python or TOML, checked; scalars and arrays of numpy and torch count as numbers and lists.

        Raises:
            UsageError: `eps must be a number above 0 …; found "small".`
        """
        plain = getattr(value, "tolist", None)
        return self._read(self.kind, plain() if callable(plain) else value, self.key)

    def read_word(self, word: Any) -> Any:
        """A value as the command line has it, one entry where there may be several; checked under its flag's name."""
        kind = self.kind.of if isinstance(self.kind, Items) and self.kind.single else self.kind
        inner = kind.of if isinstance(kind, Checked) else kind
        if isinstance(word, str) and isinstance(inner, Items):
            word = word.split(",")
        elif isinstance(word, str) and isinstance(inner.first if isinstance(inner, Either) else inner, Whole):
            digits = word.strip().removeprefix("-")
            word = int(word) if digits.isdecimal() and len(digits) < 20 else word
        return self._read(kind, word, self.flag)

    def words(self, value: Any) -> list[str]:
        """The command line that gives this value."""
        if self.is_flag:
            return [self.flag] if value else []
        if self.several:
            return [word for item in value for word in (self.flag, item)]
        return [self.flag, ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)]

    def _read(self, kind: Kind[Any], value: Any, name: str) -> Any:
        try:
            return kind.read(value)
        except Refused as refusal:
            place = refusal.place()
            raise UsageError(f"{name}{place if place.startswith('[') else ''} {refusal.sentence}.") from None


def option(default: Any, kind: Kind[Any], help: str, **more: Any) -> Any:
    """A dataclass field that is an option; see `Option` for the rest."""
    return dataclasses.field(default=default, metadata={_METADATA: (kind, help, more)})


def options_of(cls: Any) -> dict[str, Option]:
    """The options among the fields of a dataclass, by key, in order."""
    found = {}
    for field in dataclasses.fields(cls):
        if _METADATA in field.metadata:
            kind, words, more = field.metadata[_METADATA]
            flag = more.get("flag") or "--" + field.name.replace("_", "-")
            found[field.name] = Option(field.name, field.default, kind, words, **{**more, "flag": flag})
    return found


def check_options(record: object) -> None:
    """Check the options of a frozen dataclass and bring them to their types.

    Raises:
        UsageError: for the first value that is not of its kind.
    """
    for key, one in options_of(record.__class__).items():
        value = getattr(record, key)
        if value is not one.default:
            object.__setattr__(record, key, one.read(value))
