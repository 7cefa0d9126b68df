"""What is known of the zoo's models: the best attack outcome per point, on points fixed once.

A zoo model was built here, so it can be attacked as no one else can: through the network behind the mask
(`unmask`), with every candidate scored afresh on the masked model itself. White-box attacks and search without
gradients run as well, at several times the budget of an audit, and what a certificate proves is
recorded with it. `truth.json` keeps the outcome; `maskaudit zoo truth` writes it, one record per model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from maskaudit.errors import InputError
from maskaudit.files import write_atomically
from maskaudit.zoo.interface import ZooEntry

#: The committed records.
TRUTH_FILE = Path(__file__).with_name("truth.json")

#: Version of the file; raised when the meaning of a field changes.
SCHEMA = 1

#: Seed of the draw of points, `Dataset.sample`.
POINTS_SEED = 0

#: Points per data set; the first ones of the draw, so that an audit with seed 0 meets them first.
POINTS: Mapping[str, int] = {"digits": 300, "fashion-mnist": 200}

#: For data that is not in `POINTS`.
OTHER_POINTS = 200

#: Share of the correctly classified points that must be hidden for a model to count as masked.
MASKED_FROM = 0.10


@dataclass(frozen=True)
class Truth:
    """What is known of one model on `points`.

    Attributes:
        name: as in the zoo.
        recipe: digest of everything that the record depends on: model, points, ball, attacks.
        weights: digest of the model's parameters and buffers, `state_digest`.
        data, norm, eps: points and ball.
        points: numbers into the data set, in the order of the bits below.
        correct, broken, strong, cross_entropy, certified: one bit per point, hexadecimal, first point first:
            classified correctly; broken by anything (best known); by white-box attacks on any loss (G*);
            by white-box attacks on cross-entropy (CE*); certified robust ("" without a certificate).
        random: whether the model answers at random and majorities were scored.
        attacks: what ran, in order, as `view:attack`.
    """

    name: str
    recipe: str
    weights: str
    data: str
    norm: str
    eps: float
    points: tuple[int, ...]
    correct: str
    broken: str
    strong: str
    cross_entropy: str
    certified: str
    random: bool
    attacks: tuple[str, ...]

    def bits(self, field: str) -> tuple[bool, ...]:
        """One of the bit fields as booleans, in the order of `points`; all false where there is none."""
        text: str = getattr(self, field)
        return unpack(text, len(self.points)) if text else (False,) * len(self.points)

    @property
    def clean(self) -> float:
        """Clean accuracy on the points."""
        return self._share("correct")

    @property
    def best_known(self) -> float:
        """Best known robust accuracy: the share that is correct and that nothing broke."""
        return self._share("correct", "broken")

    @property
    def strong_accuracy(self) -> float:
        """Accuracy left by the model's gradients of any loss (G*)."""
        return self._share("correct", "strong")

    @property
    def cross_entropy_accuracy(self) -> float:
        """Accuracy left by the model's gradients of cross-entropy (CE*)."""
        return self._share("correct", "cross_entropy")

    @property
    def certified_accuracy(self) -> float | None:
        """Share that is certified robust, None without a certificate."""
        return self._share("certified") if self.certified else None

    @property
    def gradient_gap(self) -> float:
        """Share of the correct points that white-box attacks on any loss leave and something else breaks."""
        return (self._count("broken") - self._count("strong")) / max(self._count("correct"), 1)

    @property
    def loss_gap(self) -> float:
        """Share of the correct points that cross-entropy leaves and white-box attacks on another loss break."""
        return (self._count("strong") - self._count("cross_entropy")) / max(self._count("correct"), 1)

    @property
    def masked(self) -> bool:
        """Whether gradients or loss hide at least `MASKED_FROM` of the correct points."""
        return max(self.gradient_gap, self.loss_gap) >= MASKED_FROM

    def on(self, points: Iterable[int]) -> tuple[float, int]:
        """Best known robust accuracy on those of `points` that the record covers, and how many they are.

        Where it covers none, the figure of the whole record.
        """
        wanted = set(points)
        rows = [row for row, point in enumerate(self.points) if point in wanted]
        if not rows:
            return self.best_known, len(self.points)
        correct, broken = self.bits("correct"), self.bits("broken")
        return sum(correct[row] and not broken[row] for row in rows) / len(rows), len(rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the points (the file keeps them once per data set), with the figures for readers."""
        kept = {key: value for key, value in asdict(self).items() if key not in ("name", "points")}
        figures = ("clean", "best_known", "strong_accuracy", "cross_entropy_accuracy", "certified_accuracy",
                   "gradient_gap", "loss_gap")  # fmt: skip
        rounded = {name: getattr(self, name) for name in figures}
        return {**{k: v if v is None else round(v, 4) for k, v in rounded.items()}, **kept}

    def _share(self, field: str, less: str = "") -> float:
        return (self._count(field) - (self._count(less) if less else 0)) / len(self.points)

    def _count(self, field: str) -> int:
        return sum(self.bits(field))


def pack(bits: Sequence[bool]) -> str:
    """Booleans as hexadecimal digits, the first as the highest bit of the first digit; padded with zeros."""
    padded = [*bits, *[False] * (-len(bits) % 4)]
    return "".join(f"{sum(b << (3 - k) for k, b in enumerate(padded[i : i + 4])):x}" for i in range(0, len(padded), 4))


def unpack(text: str, n: int) -> tuple[bool, ...]:
    """The first `n` booleans of what `pack` wrote.

    Raises:
        InputError: for text that is not hexadecimal or holds another number of bits.
    """
    if not re.fullmatch(r"[0-9a-f]*", text) or len(text) != -(-n // 4):
        raise InputError(f"Expected {n} bits as {-(-n // 4)} hexadecimal digits, found {text[:40]!r}.")
    return tuple(bool(int(digit, 16) >> (3 - k) & 1) for digit in text for k in range(4))[:n]


def read_truths(path: Path = TRUTH_FILE) -> dict[str, Truth]:
    """The records of a file by model; empty where there is none.

    Raises:
        InputError: for a file that is not one of ours.
    """
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {document['schema']}, expected {SCHEMA}: establish the truth again.")
        points = {data: tuple(numbers) for data, numbers in document["points"].items()}
        return {name: _record(name, record, points) for name, record in document["models"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no records of the zoo ({type(error).__name__}: {error}).") from error


def _record(name: str, record: dict[str, Any], points: Mapping[str, tuple[int, ...]]) -> Truth:
    kept: dict[str, Any] = {f.name: record[f.name] for f in fields(Truth) if f.name not in ("name", "points")}
    kept["attacks"] = tuple(kept["attacks"])
    return Truth(name=name, points=points[kept["data"]], **kept)


def write_truths(truths: Mapping[str, Truth], path: Path = TRUTH_FILE) -> None:
    """Write all records, sorted by model: same records, same bytes.

    Raises:
        InputError: when two records on the same data have different points.
    """
    points: dict[str, tuple[int, ...]] = {}
    for truth in truths.values():
        if points.setdefault(truth.data, truth.points) != truth.points:
            raise InputError(f"The records on {truth.data} are of different points: establish all of them again.")
    document = {
        "schema": SCHEMA,
        "points": {data: list(numbers) for data, numbers in sorted(points.items())},
        "models": {name: truths[name].to_dict() for name in sorted(truths)},
    }
    lines = json.dumps(document, indent=1, allow_nan=False)
    # one line per list of numbers: a change of one model stays a small change of the file
    lines = re.sub(r"\[\s+([\d\s,]+?)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]", lines)
    write_atomically(path, (lines + "\n").encode())


def truth_of(name: str) -> Truth | None:
    """The committed record of a model, None if there is none yet."""
    return _committed().get(name)


@cache
def _committed() -> dict[str, Truth]:
    return read_truths()


def disagreements(entry: ZooEntry, truth: Truth) -> list[str]:
    """What an entry says that its record contradicts, as sentences."""
    found = []
    gaps = f"hidden by gradients {truth.gradient_gap:.3f}, by the loss {truth.loss_gap:.3f}"
    if entry.masked != truth.masked:
        found.append(f"{entry.name} is entered as {'' if entry.masked else 'not '}masked; measured: {gaps}.")
    elif entry.masked and getattr(truth, f"{entry.level}_gap") < MASKED_FROM:
        found.append(f"{entry.name} is entered as masked at {entry.level} level; measured: {gaps}.")
    certified = truth.certified_accuracy
    if certified is not None and truth.best_known < certified:
        found.append(f"{entry.name}: best known {truth.best_known:.3f} is below its certificate {certified:.3f}.")
    return found


def digest_of(*parts: Any) -> str:
    """Short digest of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
