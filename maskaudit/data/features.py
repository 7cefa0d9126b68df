"""`--features FILE`: what each column of a table may be, as TOML or JSON, and the points in those terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from maskaudit.data.interface import Dataset
from maskaudit.declared import Checked, Choice, Either, Items, Number, Record, Text, Whole, read
from maskaudit.declared.parsing import parse_json, parse_toml
from maskaudit.errors import InputError, UsageError, meant, printable
from maskaudit.files import read_bounded
from maskaudit.threat import FLOAT32_EPS, ROUNDING_ULPS, Features, Norm, ThreatModel

#: Largest file in bytes, most entries, and largest value of a feature.
MAX_BYTES, MAX_ENTRIES, MAX_VALUE = 4 << 20, 20_000, 1e9
#: Largest range of a feature of whole numbers: float32 must tell them apart as shares of it.
MAX_WHOLE = 100_000

_VALUE = Number(-MAX_VALUE, MAX_VALUE)
_COLUMN = Either(Text(1000, 1), Whole(0, 10**7))
ENTRY = Record(
    {
        "column": _COLUMN,
        "columns": Items(_COLUMN, MAX_ENTRIES, 1),
        "kind": Choice("real", "integer", "categorical", "frozen"),
        "bounds": Checked(Items(_VALUE, 2, 2), "two numbers, smallest first", lambda b: b[0] < b[1]),
        "eps": Number(0, MAX_VALUE, above=True, quotient=True),
    }
)
FILE = Record({"feature": Items(ENTRY, MAX_ENTRIES, 1)}, required=("feature",))


@dataclass
class _Column:
    """What one column may be; `eps` in its own unit, None for that of the audit; `held` to its bounds or not."""

    kind: str = "real"
    bounds: tuple[float, float] = (0.0, 1.0)
    eps: float | None = None
    held: bool = True


@dataclass(frozen=True)
class FeatureTable:
    """The columns of a table in order, as a file of features describes them."""

    names: tuple[str, ...]
    columns: tuple[_Column, ...]
    groups: tuple[tuple[int, ...], ...]

    def threat(self, eps: float, norm: Norm = "Linf") -> ThreatModel:
        """The ball in which each feature has its own radius: the one that is stated, else `eps` as share of its range.

        Raises:
            UsageError: nothing may change.
        """
        shares = [
            0.0 if one.kind == "frozen" else eps if one.eps is None else one.eps / (one.bounds[1] - one.bounds[0])
            for one in self.columns
        ]
        own = [share for share, one in zip(shares, self.columns, strict=True) if share and one.kind != "categorical"]
        largest = max(own, default=eps)
        if not any(shares):
            raise UsageError("The features leave nothing that may change: all of them are frozen.")
        return ThreatModel(norm, largest, (0.0, 1.0), Features(
            low=tuple(one.bounds[0] for one in self.columns),
            width=tuple(one.bounds[1] - one.bounds[0] for one in self.columns),
            scale=tuple(
                float(one.kind == "categorical") or share / largest
                for share, one in zip(shares, self.columns, strict=True)
            ),
            step=tuple(
                1 / (one.bounds[1] - one.bounds[0]) if one.kind == "integer" else 0.0 for one in self.columns
            ),
            groups=self.groups,
        ))  # fmt: skip

    def encode(self, data: Dataset, features: Features) -> Dataset:
        """The points as shares of each feature's range.

        Raises:
            InputError: naming the first feature with a value that it must not have.
        """
        return replace(data, x=self.coordinates(data.name, data.x, features), bounds=(0.0, 1.0))

    def coordinates(self, where: str, values: Tensor, features: Features) -> Tensor:
        """Shares (N, D) of values (N, D), each held against what its feature may be; errors as `encode`."""
        for place, one in enumerate(self.columns):
            column = values[:, place]
            low, high = one.bounds
            slack = ROUNDING_ULPS * FLOAT32_EPS * max(abs(low), abs(high))
            wrong = ((column < low - slack) | (column > high + slack)) & one.held
            what = f"outside its bounds {low:g} … {high:g}"
            if one.kind == "integer" and not bool(wrong.any()):
                wrong, what = column != column.round(), "not a whole number"
            if bool(wrong.any()):
                found = float(column[wrong][0])
                raise InputError(f"{where}: {self.names[place]} holds {found:g}, {what}; see --features.")
        for group in self.groups:
            codes = values[:, list(group)]
            if not bool((((codes == 0) | (codes == 1)).all(dim=1) & (codes.sum(dim=1) == 1)).all()):
                names = ", ".join(self.names[place] for place in group[:4])
                raise InputError(f"{where}: the columns {names} are not 1 for one category and 0 for the others.")
        return features.encode(values).clamp_(0, 1)

    def sentence(self) -> str:
        """What the report says of it."""
        columns = [one.kind for one in self.columns]
        counts = [(len(self.groups), "categorical"), *((columns.count(kind), kind) for kind in ("integer", "frozen"))]
        kinds = ", ".join(f"{count} {kind}" for count, kind in counts if count)
        return (
            f"Inputs are shares of each feature's range, and ε is one of it ({len(columns)} columns"
            f"{'; ' if kinds else ''}{kinds}); attacks change no frozen feature, and bring whole numbers and single "
            "categories where the features say so."
        )


def read_features(path: Path, data: Dataset, bounds: tuple[float, float]) -> FeatureTable:
    """The table that a file of features describes.

    Args:
        data: the points, whose columns it names; bounds: those of features that state none.

    Raises:
        InputError: for a file that cannot be read, or is no such description.
        UsageError: it names a column that is not there, or twice, or what does not fit together.
    """
    where = f"The features {path}"
    content = read_bounded(path, MAX_BYTES, where)
    parse = parse_json if content.lstrip().startswith(b"{") else parse_toml
    entries = read(FILE, parse(content, where, most=MAX_BYTES), where)["feature"]
    if data.x.dim() != 2:
        raise UsageError(f"--features is for tables (N, D); the inputs of {data.name} have shape {data.point_shape}.")
    names = data.columns or tuple(f"column {number}" for number in range(data.x.shape[1]))
    columns = [_Column(bounds=bounds) for _ in names]
    groups: list[tuple[int, ...]] = []
    seen: set[int] = set()
    for entry in entries:
        places = [_place(where, name, data, len(names)) for name in _columns(where, entry)]
        if len(set(places)) < len(places) or seen & set(places):
            twice = next(place for place in places if place in seen or places.count(place) > 1)
            raise UsageError(f"{where} describe {printable(names[twice], 60)!r} twice.")
        seen |= set(places)
        for place in places:
            columns[place] = _column(where, entry, bounds)
            if columns[place].kind == "frozen" and "bounds" not in entry:
                columns[place] = _as_it_is(data.x[:, place])
        if entry.get("kind") == "categorical":
            groups.append(tuple(places))
    return FeatureTable(names, tuple(columns), tuple(groups))


def _columns(where: str, entry: Mapping[str, Any]) -> list[str | int]:
    if ("column" in entry) == ("columns" in entry):
        raise UsageError(f"{where} must give each entry either column = … or columns = […].")
    return [entry["column"]] if "column" in entry else list(entry["columns"])


def _place(where: str, name: str | int, data: Dataset, total: int) -> int:
    """Number of a column, given by name or number."""
    if isinstance(name, int):
        if name >= total:
            raise UsageError(f"{where} name column {name}; {data.name} has {total}, counted from 0.")
        return name
    known = data.columns or ()
    if name not in known:
        hint = meant(name, known) if known else "; its columns have no names, give their numbers"
        raise UsageError(f"{where}: {data.name} has no column {printable(name, 60)!r}{hint}.")
    return known.index(name)


def _column(where: str, entry: Mapping[str, Any], bounds: tuple[float, float]) -> _Column:
    kind, eps = entry.get("kind", "real"), entry.get("eps")
    low, high = entry.get("bounds", bounds)
    if kind in ("categorical", "frozen") and eps is not None:
        raise UsageError(f"{where}: a {kind} feature has no eps; leave it out.")
    if kind == "categorical" and ((low, high) != (0, 1) or len(entry.get("columns", ())) < 2):
        raise UsageError(f"{where}: a categorical feature is two or more columns that are 0 or 1; name them together.")
    if kind == "integer" and (low != math.floor(low) or high != math.floor(high) or high - low > MAX_WHOLE):
        raise UsageError(f"{where}: bounds of an integer feature are whole numbers at most {MAX_WHOLE} apart.")
    if kind == "integer" and eps is not None and eps < 1:
        raise UsageError(f"{where}: the eps of an integer feature is at least 1; below, it is frozen.")
    return _Column(kind, (float(low), float(high)), eps)


def _as_it_is(values: Tensor) -> _Column:
    """A frozen column of values (N,) that the file does not describe: whatever it holds is accepted."""
    low, high = float(values.min()), float(values.max())
    return _Column("frozen", (low, high if high > low else low + 1), held=False)


def wide(bounds: tuple[float, float]) -> tuple[float, float]:
    """Bounds for reading points whose features have their own."""
    return (min(bounds[0], -MAX_VALUE), max(bounds[1], MAX_VALUE))
