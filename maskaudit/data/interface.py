"""What every data source becomes: labelled points inside known bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from maskaudit.declared import Items, Text, read
from maskaudit.errors import InputError, UsageError, printable
from maskaudit.rng import PointRNG
from maskaudit.target.chunks import chunks
from maskaudit.threat import FLOAT32_EPS, ROUNDING_ULPS

Split = Literal["train", "test", "all"]

#: Most axes of the inputs, that of the points included.
MAX_AXES = 8
#: Most classes, and what their names may be.
MAX_CLASSES = 1_000_000
CLASS_NAMES = Items(Text(), MAX_CLASSES)

#: Of its multiples the fractional parts are spread more evenly than those of any other number.
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Draw:
    """Which points of a source an audit may need: the first `points` that `Dataset.sample` draws under a seed.

    No others need be decoded, or lie in memory. With `stratify` every class has its share of any number of them;
    `numbers` are those of the points that were drawn so.
    """

    points: int
    seed: int
    stratify: bool = False
    numbers: Tensor | None = dataclasses.field(default=None, compare=False)

    def rows(self, y: Tensor) -> Tensor:
        """Numbers of the points among those with labels `y` (N,), int64, in drawn order."""
        order = drawn_by_class(y, self.seed) if self.stratify else drawn(len(y), self.seed)
        return order[: self.points]

    def of(self, rows: Tensor) -> Draw:
        """The same with the numbers of the points that it drew."""
        return dataclasses.replace(self, numbers=rows) if self.stratify else self


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled points, checked once so that no later code has to.

    Values that leave the bounds by float32 rounding only are moved onto them;
    anything further out is refused.

    Attributes:
        name: what the points are called in reports, usually the source as given.
        x: float32, inside `bounds`: images (N, C, H, W), vectors (N, D), signals (N, C, L), tokens (N, T, F), …
        y: int64 labels (N,), each in [0, num_classes).
        num_classes: number of classes, ≥ 2.
        bounds: smallest and largest admissible coordinate value.
        class_names: one name per class, if known.
        split: which part of the source this is.
        notes: how the source was interpreted (layout, scaling), as sentences for the report.
        draw, total: how the points held here were drawn from the `total` of the source, in drawn order; None where
            all are here.
        columns: names of the features of a table, in order.

    Raises:
        UsageError: for bounds or a split that make no sense.
        InputError: for arrays of the wrong shape or type, labels out of range, values that are
            not finite or outside the bounds, fewer than two classes, or no points.
    """

    name: str
    x: Tensor
    y: Tensor
    num_classes: int
    bounds: tuple[float, float]
    class_names: tuple[str, ...] | None = None
    split: Split = "all"
    notes: tuple[str, ...] = ()
    draw: Draw | None = None
    total: int | None = None
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check everything that the class promises."""
        check_bounds(self.bounds)
        check_split(self.split)
        self._check_arrays()
        self._check_labels()
        self._check_values()

    def __len__(self) -> int:
        """Number of points N of the source."""
        return len(self.x) if self.total is None else self.total

    @property
    def point_shape(self) -> tuple[int, ...]:
        """Shape of one point: (C, H, W), (D,), …."""
        return tuple(self.x.shape[1:])

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw `n` points without replacement; all points, in drawn order, when there are fewer than `n`.

        Draws are nested: the first 100 of `sample(400, s)` are `sample(100, s)`, so a
        sequential look extends the one before. They depend on the seed and on the number of
        points only, not on torch's random state or version.

        Returns:
            Point numbers (n,) int64 into this dataset, with their `x` (n, …) and `y` (n,).
        """
        if n < 1:
            raise UsageError(f"The number of samples must be at least 1, got {n}; try --samples 200.")
        stratified = self.draw is not None and self.draw.numbers is not None
        index = (self.draw.numbers if stratified else drawn(len(self), seed))[:n]  # type: ignore[index,union-attr]
        if self.draw is None:
            return index, self.x[index], self.y[index]
        if self.draw.seed != seed:
            raise UsageError(f"{self.name} holds the points drawn under seed {self.draw.seed}, not under {seed}.")
        return index[: len(self.x)], self.x[:n], self.y[:n]

    def by_class(self, seed: int) -> Dataset:
        """The same points in an order in which every class has its share of any number of them."""
        if self.draw is not None:
            return self
        order = drawn_by_class(self.y, seed)
        draw = Draw(len(self), seed, stratify=True, numbers=order)
        return dataclasses.replace(self, x=self.x[order], y=self.y[order], draw=draw, total=len(self))

    def with_classes_of(self, names: Sequence[str]) -> Dataset:
        """The same points with their labels counted as a model's classes of these names, and a note where that differs.

        Names are compared without regard to case, underscores and hyphens, and by the first of several that commas
        separate. Where there are none, some are no class of the model, or two classes have one, labels stay.
        """
        own, theirs = ([_plain(name) for name in given] for given in (self.class_names or (), names))
        if own == theirs[: len(own)] or not set(own) & set(theirs):
            return self
        lost = [name for name, plain in zip(self.class_names or (), own, strict=True) if plain not in theirs]
        if lost or len(set(theirs)) < len(theirs) or len(set(own)) < len(own):
            what = f"{printable(lost[0], 60)} is not a class of the model" if lost else "two classes have one name"
            return dataclasses.replace(self, notes=(*self.notes, f"Labels were not matched by name: {what}."))
        place = torch.tensor([theirs.index(name) for name in own])
        first = next(number for number, name in enumerate(own) if theirs.index(name) != number)
        note = (
            f"Labels were matched by the names of the classes: {printable(self.class_names[first], 60)} is class "  # type: ignore[index]
            f"{place[first]} of the model, not {first}."
        )
        return dataclasses.replace(
            self, y=place[self.y], num_classes=len(names), class_names=tuple(names), notes=(*self.notes, note)
        )

    def some(self, limit: int) -> Dataset:
        """At most `limit` of the points: the first, or, where those lack a class, evenly spaced ones."""
        if len(self.x) <= limit:
            return self
        rows = some_rows(self.y, limit)
        return dataclasses.replace(self, x=self.x[rows], y=self.y[rows])

    def _check_arrays(self) -> None:
        if self.x.dtype != torch.float32 or self.y.dtype != torch.int64:
            raise InputError(
                f"{self.name}: expected float32 inputs and int64 labels, got {_dtype(self.x)} and {_dtype(self.y)}."
            )
        if not 2 <= self.x.dim() <= MAX_AXES:
            raise InputError(
                f"{self.name}: inputs must be images (N, C, H, W), vectors (N, D), or of another shape (N, …) with up "
                f"to {MAX_AXES} axes, got shape {tuple(self.x.shape)}."
            )
        if self.y.dim() != 1 or len(self.x) != len(self.y):
            raise InputError(
                f"{self.name}: there must be one label per input, "
                f"got inputs {tuple(self.x.shape)} and labels {tuple(self.y.shape)}."
            )
        if self.x.numel() == 0:
            raise InputError(f"{self.name}: there are no points in the {self.split} split; give a source with some.")

    def _check_labels(self) -> None:
        if self.num_classes < 2:
            raise InputError(
                f"{self.name}: a classifier needs at least 2 classes, found {self.num_classes}; "
                "add points of other classes, or an array num_classes to the .npz."
            )
        low, high = int(self.y.min()), int(self.y.max())
        if low < 0 or high >= self.num_classes:
            remedy = "number the classes from 0 without gaps"
            if (low, high) == (-1, 1) and self.num_classes == 2:
                remedy = "write 0 for −1"
            raise InputError(
                f"{self.name}: labels must lie in 0 … {self.num_classes - 1}, found {low} … {high}; {remedy}."
            )
        if self.num_classes > MAX_CLASSES:
            raise InputError(f"{self.name}: at most {MAX_CLASSES} classes are read, found {self.num_classes}.")
        if self.class_names is not None:
            read(CLASS_NAMES, self.class_names, f"{self.name}: class_names")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise InputError(
                f"{self.name}: expected one name for each of {self.num_classes} classes, got {len(self.class_names)}."
            )

    def _parts(self) -> Iterator[Tensor]:
        """The inputs in portions that are worth little memory."""
        for rows in chunks(len(self.x), math.prod(self.point_shape)):
            yield self.x[rows]

    def _check_values(self) -> None:
        finite = torch.cat([torch.isfinite(x).flatten(1).all(dim=1) for x in self._parts()])
        if not bool(finite.all()):
            bad = int((~finite).sum())
            first = int((~finite).nonzero()[0])
            raise InputError(
                f"{self.name}: {bad} of {len(self.x)} inputs hold NaN or infinite values, the first is point {first}; "
                "remove or repair them."
            )
        low, high = self.bounds
        slack = ROUNDING_ULPS * FLOAT32_EPS * max(abs(low), abs(high))
        smallest, largest = float(self.x.min()), float(self.x.max())
        if smallest < low - slack or largest > high + slack:
            outside = torch.cat([((x < low - slack) | (x > high + slack)).flatten(1).any(dim=1) for x in self._parts()])
            raise InputError(
                f"{self.name}: inputs range over {smallest:g} … {largest:g}, outside the bounds {low:g},{high:g} in "
                f"{int(outside.sum())} of {len(outside)} points; {self._remedy(smallest, largest)}"
            )
        if smallest < low or largest > high:
            object.__setattr__(self, "x", self.x.clamp(low, high))

    def _remedy(self, smallest: float, largest: float) -> str:
        """What to do about inputs of such a range."""
        bounds = f"give the bounds your model's inputs really have, for example --bounds {_suggest(smallest, largest)}"
        if self.columns:
            return f"give each column its own bounds with --features FILE; or {bounds}."
        return bounds + (
            ", with --std 255 for a model of inputs in 0 … 1." if smallest >= 0 and 16 < largest <= 255 else "."
        )


def in_order_of(wanted: Sequence[str], data: Dataset, pool: Tensor) -> tuple[Dataset, Tensor]:
    """A table (N, D) and further rows of it with the columns that a model takes, in its order, by their names.

    Both are left as they are where one of them has no names, or where none is the same.

    Raises:
        InputError: the table has some of the columns and lacks others.
    """
    held = data.columns or ()
    known = {_plain(name): place for place, name in enumerate(held)} | {name: n for n, name in enumerate(held)}
    places = [known.get(name, known.get(_plain(name))) for name in wanted]
    found = [place for place in places if place is not None]
    if not found or found == list(range(len(held))):
        return data, pool
    if len(found) < len(places):
        lacking = next(name for name, place in zip(wanted, places, strict=True) if place is None)
        raise InputError(f"{data.name} has no column {printable(lacking, 60)!r}, which the model takes.")
    spare = [name for place, name in enumerate(held) if place not in found]
    left_out = f"; it takes none of {printable(', '.join(spare), 120)}" if spare else ""
    note = f"The columns of the table were put in the order in which the model takes them{left_out}."
    columns = tuple(held[place] for place in found)
    return dataclasses.replace(data, x=data.x[:, found], columns=columns, notes=(*data.notes, note)), pool[:, found]


def _plain(name: str) -> str:
    """A name of a class as it is compared."""
    return " ".join(name.split(",")[0].casefold().replace("_", " ").replace("-", " ").split())


def drawn(total: int, seed: int) -> Tensor:
    """All of `total` point numbers, int64, in the order in which a seed draws them."""
    keys = PointRNG.create(seed, "data.sample", torch.arange(total)).integers(2**53)
    return torch.argsort(keys, stable=True)


def drawn_by_class(y: Tensor, seed: int) -> Tensor:
    """All point numbers, int64, in an order in which each class c of N_c of the N points has its share of any number n.

    The points of each class are shuffled, and the one of rank r comes at (r + u_c) / N_c with u_c uniform in [0, 1): so
    many of them as n·N_c / N on average (Madow & Madow 1944, On the theory of systematic sampling).
    """
    shuffled = drawn(len(y), seed)
    labels, place, count = y[shuffled].unique(return_inverse=True, return_counts=True)
    grouped = place.argsort(stable=True)
    rank = torch.empty_like(grouped)
    rank[grouped] = torch.arange(len(y)) - (count.cumsum(0) - count)[place[grouped]]
    start = PointRNG.create(seed, "data.strata", labels).uniform(()).double()
    return shuffled[((rank + start[place]) / count[place]).argsort(stable=True)]


def some_rows(y: Tensor, limit: int) -> Tensor:
    """At most `limit` rows of points with labels `y`: the first, or, where those lack a class, evenly spaced ones."""
    if len(y[:limit].unique()) == len(y.unique()):
        return torch.arange(min(limit, len(y)))
    return torch.tensor(evenly_spaced(len(y), limit))


def chosen_rows(y: Tensor, limit: int | None, draw: Draw | None) -> Tensor:
    """The rows of a source's points with labels `y` that are wanted: those drawn, at most `limit`, or all."""
    if draw is not None:
        return draw.rows(y)
    return torch.arange(len(y)) if limit is None else some_rows(y, limit)


def entries(parts: Sequence[Any], rows: Sequence[int]) -> Iterator[Any]:
    """The entries at some places of all parts in a row; no others are decoded."""
    places = [(part, at) for part in parts for at in range(len(part))]
    for part, at in (places[row] for row in rows):
        yield part[at]


def evenly_spaced(total: int, limit: int) -> list[int]:
    """At most `limit` of `total` positions, evenly spaced, ordered so that the first of them are spread as well."""
    kept = min(total, limit)
    order = sorted(range(kept), key=lambda number: number * _GOLDEN % 1) if kept < total else range(kept)
    return [number * total // kept for number in order]


def check_bounds(bounds: tuple[float, float]) -> None:
    """Raise UsageError unless `bounds` are two finite numbers, smallest first."""
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"The bounds must be two finite numbers, smallest first, got {low:g},{high:g}.")


def check_split(split: str) -> None:
    """Raise UsageError unless `split` is train, test or all."""
    if split not in get_args(Split):
        raise UsageError(f"The split must be train, test or all, got {split!r}.")


def scale_to_bounds(raw: Tensor, full: float, bounds: tuple[float, float]) -> Tensor:
    """Map stored pixels 0 … `full` (any shape) linearly onto `bounds`, float32; onto [0, 1] this is raw / full."""
    low, high = bounds
    unit = raw.to(torch.float32).div(full)
    if (low, high) == (0.0, 1.0):
        return unit
    return unit.mul_(high - low).add_(low).clamp_(low, high)


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _suggest(smallest: float, largest: float) -> str:
    for low, high in ((0, 1), (-1, 1), (0, 255)):
        if smallest >= low and largest <= high:
            return f"{low},{high}"
    step = 10.0 ** (math.floor(math.log10(largest - smallest)) - 2) if largest > smallest else 1.0
    return f"{math.floor(smallest / step) * step:.6g},{math.ceil(largest / step) * step:.6g}"
