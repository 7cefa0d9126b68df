"""Straight-through estimators (Bengio et al. 2013): a staircase forward, the slope of something like it backward.

They cut the gradient on purpose and are no fault: the staircase has none of its own. But the gradient of such a model
follows the trend only, and who sees it disagree with the model wants to know why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from maskaudit.results import Location
from maskaudit.trace.records import FunctionCheck
from maskaudit.trace.seen import Seen
from maskaudit.trace.vocabulary import ADDING, COMPARISONS, HARD

if TYPE_CHECKING:
    from maskaudit.trace.walk import Walk

#: Results that differ by this many units of rounding of the largest number at hand are the same.
ROUNDINGS = 8


def rejoined(walk: Walk, back: Seen) -> list[Seen]:
    """The sums in which a staircase takes the gradient of what it is added to, if all data cut at `back` end in such.

    Whatever the formula, `a + (q − a).detach()` or `q.detach() + a − a.detach()`, the sum has the value of `q`, and
    between `q` and the input there is a staircase on every way. Empty if any of the data go on otherwise.
    """
    found = [_estimator(walk, join) for join in _joins(walk, back)]
    return [op for op in found if op is not None] if None not in found else []


def of_functions(checks: Mapping[str, FunctionCheck], ops: Sequence[Seen]) -> list[Location]:
    """Custom Functions whose backward follows the trend of their staircase, where they were met."""
    steps = {name for name, check in checks.items() if check.kind == "honest" and not check.smooth}
    return [op.location for op in ops if op.kind == "function" and op.name in steps]


def _joins(walk: Walk, back: Seen) -> Iterator[Seen]:
    """Where data that a cut took off the graph meet data that are on it."""
    reached = {back.index}
    for op in walk.ops[back.index + 1 :]:
        if op.index in walk.ancestors and reached.intersection(op.parents):
            if op.live_out:
                yield op
            else:
                reached.add(op.index)


def _estimator(walk: Walk, join: Seen) -> Seen | None:
    """The first sum from `join` on that has the value of a staircase, if only sums and cuts lead to it."""
    current: Seen | None = join
    while current is not None and (current.name in ADDING or not current.live_out):
        if current.live_out and any(_equal(op, current) and _staircase(walk, op) for op in _before(walk, current)):
            return current
        readers = [op for op in walk.ops[current.index + 1 :] if current.index in op.parents]
        current = readers[0] if len(readers) == 1 else None
    return None


def _before(walk: Walk, op: Seen) -> Iterator[Seen]:
    return (walk.ops[index] for index in walk.ancestors_of(op.index) - {op.index})


def _equal(op: Seen, total: Seen) -> bool:
    """Whether what `op` made has the value of the sum, up to the rounding of its terms."""
    if not op.data or not total.data:
        return False
    (a, *_), (b, *_) = op.data, total.data
    if a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point() or not a.numel():
        return False
    largest = max(float(t.detach().abs().amax()) for t in (b, *total.inputs) if t.numel())
    return float((a - b).abs().amax()) <= ROUNDINGS * torch.finfo(a.dtype).eps * largest


def _staircase(walk: Walk, op: Seen) -> bool:
    """Whether every way from the input to the op, as far as torch saw it, leads through a staircase."""
    pending, seen, stairs = [op], set(), False
    while pending:
        current = pending.pop()
        if current.name in HARD or current.name in COMPARISONS:
            stairs = True
            continue
        if current.kind != "torch" or walk.reads_input(current):
            return False
        seen.add(current.index)
        pending += [walk.ops[p] for p in current.parents if p not in seen]
    return stairs
