"""Tables: one row per point, one column per feature, one with the labels. CSV, and Parquet through pyarrow."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskaudit.data.interface import MAX_CLASSES, Dataset, Draw, Split, chosen_rows
from maskaudit.errors import InputError, UsageError, describe_error, meant, printable, refusing
from maskaudit.files import largest_file, read_bounded

#: Most columns and rows, and the longest text of one cell, in characters.
MAX_COLUMNS, MAX_ROWS, MAX_CELL = 100_000, 10_000_000, 1_000
#: Memory that a cell takes while it is read, in bytes.
CELL_BYTES = 100
#: What may separate the cells of a line, the likeliest first.
SEPARATORS = (",", ";", "\t", "|")
#: A number with a comma before its decimals.
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
#: Cells that say yes or no.
TRUTHS = {"True": 1.0, "False": 0.0, "TRUE": 1.0, "FALSE": 0.0, "true": 1.0, "false": 0.0}
#: Names of the column with the labels where none is named.
TARGETS = ("target", "label", "class", "y")

Columns = dict[str, np.ndarray]


def load_csv(
    path: Path, split: Split, bounds: tuple[float, float], limit: int | None = None, draw: Draw | None = None,
    target: str | None = None,
) -> Dataset:  # fmt: skip
    """A text table whose first line names the columns; cells are numbers, but for labels.

    Raises:
        InputError: for a file that is no such table.
        UsageError: there is no column `target`.
    """
    content = read_bounded(path, largest_file(), str(path))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text table: byte {error.start} is not UTF-8.") from None
    head = text.split("\n", 1)[0]
    separator = max(SEPARATORS, key=head.count)
    if CELL_BYTES * (text.count(separator) + text.count("\n")) > largest_file():
        raise InputError(f"{path} holds more cells than a quarter of the memory here takes; save fewer rows.")
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        names = [name.strip() for name in next(lines, [])]
        rows = [row for row in itertools.islice(lines, MAX_ROWS + 1) if row]
    except csv.Error as error:
        raise InputError(f"{path} is not a text table ({describe_error(error)}); save it as CSV.") from error
    _check_names(path, names, len(rows))
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise InputError(f"{path}: line {number} has {len(row)} cells, and the first line names {len(names)}.")
        if any(len(cell) > MAX_CELL for cell in row):
            raise InputError(f"{path}: line {number} has a cell of more than {MAX_CELL} characters.")
    columns = {n: np.array([row[place].strip() for row in rows], object) for place, n in enumerate(names)}
    if separator != ",":  # a comma is a decimal point then, as where German or French tables are saved
        columns = {n: np.array([_pointed(cell) for cell in cells.tolist()], object) for n, cells in columns.items()}
    return _dataset(path, columns, split, bounds, limit, draw, target)


def load_parquet(
    path: Path, split: Split, bounds: tuple[float, float], limit: int | None = None, draw: Draw | None = None,
    target: str | None = None,
) -> Dataset:  # fmt: skip
    """A Parquet file with flat columns of numbers; labels may be texts.

    Raises:
        InputError: without pyarrow, or for a file that is damaged, too large or holds other columns.
        UsageError: there is no column `target`.
    """
    try:
        import pyarrow  # type: ignore[import-not-found,import-untyped,unused-ignore]
        import pyarrow.parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise InputError(f"{path} is a Parquet file, which needs the package pyarrow: pip install pyarrow.") from error
    with refusing(f"{path} cannot be read as Parquet, it may be damaged"):
        with pyarrow.parquet.ParquetFile(path) as file:
            names = [str(field.name) for field in file.schema_arrow]
            rows = file.metadata.num_rows
            _check_names(path, names, rows)
            unpacked = sum(file.metadata.row_group(k).total_byte_size for k in range(file.metadata.num_row_groups))
            if max(unpacked, 8 * rows * len(names)) > largest_file():
                raise InputError(f"{path} unpacks to more than a quarter of the memory here; save fewer rows.")
            other = [field.name for field in file.schema_arrow if not _flat(pyarrow, field.type)]
            if other:
                raise InputError(f"{path}: column {printable(other[0], 60)!r} holds neither numbers nor texts.")
            texts = [field.name for field in file.schema_arrow if _is_text(pyarrow, field.type)]
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:  # each text once, however many rows
            table = file.read()
        columns = {name: _values(path, name, table.column(place)) for place, name in enumerate(names)}
    return _dataset(path, columns, split, bounds, limit, draw, target)


def _flat(pyarrow: Any, kind: Any) -> bool:
    value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    numbers = any(getattr(pyarrow.types, f"is_{name}")(value) for name in ("integer", "floating", "boolean"))
    return numbers or _is_text(pyarrow, value)


def _is_text(pyarrow: Any, kind: Any) -> bool:
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def _values(path: Path, name: str, column: Any) -> np.ndarray:
    if column.null_count:
        raise InputError(
            f"{path}: column {printable(name, 60)!r} has {column.null_count} empty cells; fill them first."
        )
    if str(column.type).startswith("dictionary"):
        parts = [(np.array(part.dictionary.to_pylist(), object), part.indices.to_numpy()) for part in column.chunks]
        if any(len(str(value)) > MAX_CELL for values, _ in parts for value in values):
            raise InputError(f"{path}: column {printable(name, 60)!r} has a cell of more than {MAX_CELL} characters.")
        return np.concatenate([values[rows] for values, rows in parts])
    found: np.ndarray = column.to_numpy()
    return found.astype(np.int64) if found.dtype == bool else found


def _check_names(path: Path, names: Sequence[str], rows: int) -> None:
    if not 2 <= len(names) <= MAX_COLUMNS:
        raise InputError(
            f"{path} has {len(names)} columns; expected features and labels, at most {MAX_COLUMNS} together, named in "
            "the first line."
        )
    if not 1 <= rows <= MAX_ROWS:
        raise InputError(f"{path} has {f'more than {MAX_ROWS}' if rows else 'no'} rows below the names of its columns.")
    if "" in names:
        index = "; pandas writes such a column of row numbers unless it is told index=False" if not names[0] else ""
        raise InputError(f"{path}: column {names.index('') + 1} has no name{index}.")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"{path}: two columns are called {printable(twice[0], 60)!r}.")


def _dataset(
    path: Path, columns: Columns, split: Split, bounds: tuple[float, float], limit: int | None, draw: Draw | None,
    target: str | None,
) -> Dataset:  # fmt: skip
    name = _target(path, list(columns), target)
    labels, names = _labels(path, name, columns.pop(name))
    rows = chosen_rows(labels, limit, draw)
    x = np.stack([_numbers(path, key, values[rows.numpy()]) for key, values in columns.items()], axis=1)
    notes = [f"The labels are the column {printable(name, 60)!r}."] if target is None else []
    notes.append("A table has no train part: its train and test splits are the same points.")
    return Dataset(
        name=str(path), x=torch.from_numpy(x), y=labels[rows],
        num_classes=len(names) if names else int(labels.max()) + 1, bounds=bounds, class_names=names, split=split,
        notes=tuple(notes), draw=draw and draw.of(rows), total=len(labels) if draw else None, columns=tuple(columns),
    )  # fmt: skip


def _target(path: Path, names: list[str], target: str | None) -> str:
    if target is not None:
        if target not in names:
            raise UsageError(f"{path} has no column {printable(target, 60)!r}{meant(target, names)}: see --target.")
        return target
    found = next((name for wanted in TARGETS for name in names if name.lower() == wanted), None)
    if found is None:
        raise UsageError(
            f"{path}: say with --target which column holds the labels, for example --target {printable(names[-1], 60)}."
        )
    return found


def _labels(path: Path, name: str, values: np.ndarray) -> tuple[torch.Tensor, tuple[str, ...] | None]:
    """Class numbers, and the names of the classes where they are texts."""
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError):
        texts = [str(value) for value in values.tolist()]
        names = sorted(set(texts))
        if len(names) > MAX_CLASSES:
            raise InputError(f"{path}: column {printable(name, 60)!r} holds {len(names)} different texts.") from None
        number = {text: place for place, text in enumerate(names)}
        return torch.tensor([number[text] for text in texts]), tuple(printable(item, 100) for item in names)
    if not (np.isfinite(numbers).all() and (numbers == np.round(numbers)).all() and np.abs(numbers).max() < 2**53):
        raise InputError(f"{path}: the labels in column {printable(name, 60)!r} must be class numbers or texts.")
    return torch.from_numpy(numbers.astype(np.int64)), None


def _numbers(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """The cells of a column; True and False, as pandas writes them, are 1 and 0."""
    if values.dtype == object and set(values.tolist()) <= TRUTHS.keys():
        values = np.array([TRUTHS[value] for value in values.tolist()])
    try:
        with np.errstate(over="ignore"):
            return values.astype(np.float64).astype(np.float32)
    except (TypeError, ValueError):
        strange = next((item for item in values.tolist() if not _is_number(item)), "")
        remedy = "encode it as the model expects it, or leave the column out"
        if not str(strange).strip():
            remedy = "fill the gap as the model expects it, or leave the row out"
        elif DECIMAL_COMMA.fullmatch(str(strange)):
            remedy = "write decimals with a point"
        raise InputError(
            f"{path}: column {printable(name, 60)!r} holds {printable(str(strange), 40)!r}, not a number; {remedy}."
        ) from None


def _pointed(cell: str) -> str:
    """A number with a comma before its decimals, written with a point; any other text as it is."""
    return cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell) else cell


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
