"""Straight-through estimators (Bengio et al. 2013): a staircase forward, the slope of something like it backward.

They cut the gradient on purpose and are no fault: the staircase has none of its own. But the gradient of such a model
follows the trend only, and who sees it disagree with the model wants to know why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from maskaudit.trace.op_notes import RecordedOp, has_memory
from maskaudit.trace.opgraph import OpGraph
from maskaudit.trace.records import FunctionCheck
from maskaudit.trace.vocabulary import (
    ADDING,
    CHOICES,
    COMPARISONS,
    FAKE_QUANTISERS,
    HARD,
    SUBTRACTING,
    SUBTRACTING_FROM,
)
from maskaudit.verdict.limits import STAIRCASE_FOREIGN, STAIRCASE_TREND

#: Ops that make a staircase of what they are given.
STEPS = HARD | COMPARISONS | CHOICES
#: Results that differ by this many units of rounding of the largest number at hand are the same.
ROUNDINGS = 8


@dataclass(frozen=True)
class Estimator:
    """A sum that has the value of a staircase and the gradient of something else.

    Attributes:
        total: the sum.
        trend: correlation over the points of the staircase and what the gradient is taken from, unit by unit; None
            where one of them stays.
    """

    total: RecordedOp
    trend: float | None

    @property
    def honest(self) -> bool:
        """Whether the gradient is that of something which goes along with the staircase."""
        return self.trend is None or self.trend >= STAIRCASE_TREND

    @property
    def foreign(self) -> bool:
        """Whether the gradient is that of something else than the staircase."""
        return self.trend is not None and self.trend < STAIRCASE_FOREIGN


class Staircases:
    """Finds the sums in which a staircase takes the gradient of what it is added to."""

    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph

    @cached_property
    def ops(self) -> frozenset[int]:
        """Ops whose data come from the input through a staircase only, on every way that torch saw.

        A scale that is shared by many entries is no way, though it may be taken from the data as well.
        """
        found: set[int] = set()
        for op in self.graph.ops:
            carrying = [self.graph.ops[p] for p in op.parents if self.graph.ops[p].carries]
            whole = {p.index for p in carrying if _entries(p) >= _entries(op)}
            behind = op.kind == "torch" and whole and whole <= found and not self.graph.observer.reads_input(op)
            if behind or (op.carries and op.name in STEPS):
                found.add(op.index)
        return frozenset(found)

    def rejoined(self, back: RecordedOp) -> list[Estimator]:
        """The estimators in which all data end that were cut at `back`; empty if any of the data go on otherwise.

        Whatever the formula, `a + (q − a).detach()` or `q.detach() + a − a.detach()`, the sum has the value of `q`, and
        between `q` and the input there is a staircase on every way.
        """
        found = [self._estimator(join) for join in self._joins(back)]
        return [one for one in found if one is not None] if None not in found else []

    def _joins(self, back: RecordedOp) -> Iterator[RecordedOp]:
        """Where data that a cut took off the graph meet data through which a gradient comes."""
        reached = {back.index}
        for op in self.graph.ops[back.index + 1 :]:
            if op.index in self.graph.way and reached.intersection(op.parents):
                if self.graph.arrives(op):
                    yield op
                else:
                    reached.add(op.index)

    def _estimator(self, join: RecordedOp) -> Estimator | None:
        """The first sum from `join` on that has the value of a staircase, if only sums lead to it."""
        current: RecordedOp | None = join
        while current is not None and current.name in ADDING:
            before = self.graph.ancestors(current.index) & self.ops
            if any(_equal(self.graph.ops[index], current) for index in before):
                return Estimator(current, _trend(self.graph, join, current))
            readers = self.graph.readers(current)
            current = readers[0] if len(readers) == 1 else None
        return None


def of_one_piece(checks: Mapping[str, FunctionCheck], ops: Sequence[RecordedOp]) -> list[RecordedOp]:
    """Ops of torch and custom Functions that are estimators by themselves."""
    steps = {name for name, check in checks.items() if check.kind == "honest" and not check.smooth}
    return [op for op in ops if op.name in (steps if op.kind == "function" else FAKE_QUANTISERS)]


def _trend(graph: OpGraph, join: RecordedOp, total: RecordedOp) -> float | None:
    """How the value of the sum goes along with the live term of `join`, where its gradient comes from."""
    value, sign, op = _spread(total.data[0]), 1, join
    while True:
        terms = [(place, t) for place, t in enumerate(filter(_plain, op.inputs)) if graph.observer.live(t)]
        if len(terms) != 1 or terms[0][1].shape != value.shape:
            return None
        place, term = terms[0]
        sign *= -1 if op.name in (SUBTRACTING if place else SUBTRACTING_FROM) else 1
        spread = _spread(term)
        scale = float(value.norm() * spread.norm())
        if scale:
            return sign * float((value * spread).sum()) / scale
        maker = graph.observer.maker(term)  # a − a.detach() is zero: what counts is a
        if maker is None or maker < 0 or graph.ops[maker].name not in ADDING:
            return None
        op = graph.ops[maker]


def _spread(tensor: Tensor) -> Tensor:
    """How each unit differs from its mean over the points."""
    values = tensor.detach().double()
    return values - values.mean(dim=0)


def _equal(op: RecordedOp, total: RecordedOp) -> bool:
    """Whether what `op` made has the value of the sum, up to the rounding of its terms."""
    if not op.data or not total.data:
        return False
    (a, *_), (b, *_) = op.data, total.data
    if a.shape != b.shape or a.dtype != b.dtype or not _plain(a) or not _plain(b):
        return False
    largest = max(float(t.detach().abs().amax()) for t in (b, *filter(_plain, total.inputs)))
    return float((a - b).abs().amax()) <= ROUNDINGS * torch.finfo(a.dtype).eps * largest


def _plain(tensor: Tensor) -> bool:
    return has_memory(tensor) and tensor.is_floating_point() and bool(tensor.numel())


def _entries(op: RecordedOp) -> int:
    return max((data.numel() for data in op.data), default=0)
