"""Straight-through estimators (Bengio et al. 2013): a staircase forward, the slope of something like it backward.

They cut the gradient on purpose and are no fault: the staircase has none of its own. But the gradient of such a model
follows the trend only, and who sees it disagree with the model wants to know why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maskaudit.results import Location
from maskaudit.trace.records import FunctionCheck
from maskaudit.trace.seen import Seen, has_memory
from maskaudit.trace.vocabulary import ADDING, COMPARISONS, FAKE_QUANTISERS, HARD

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


def of_one_piece(checks: Mapping[str, FunctionCheck], ops: Sequence[Seen]) -> list[Location]:
    """Ops of torch and custom Functions that are estimators by themselves, where they were met."""
    steps = {name for name, check in checks.items() if check.kind == "honest" and not check.smooth}
    return [op.location for op in ops if op.name in (steps if op.kind == "function" else FAKE_QUANTISERS)]


def _joins(walk: Walk, back: Seen) -> Iterator[Seen]:
    """Where data that a cut took off the graph meet data through which a gradient comes."""
    reached = {back.index}
    for op in walk.ops[back.index + 1 :]:
        if op.index in walk.ancestors and reached.intersection(op.parents):
            if _on_the_way(walk, op):
                yield op
            else:
                reached.add(op.index)


def _on_the_way(walk: Walk, op: Seen) -> bool:
    flow = walk.e.flows.get(op.index)
    return flow is not None and flow.points > 0


def _estimator(walk: Walk, join: Seen) -> Seen | None:
    """The first sum from `join` on that has the value of a staircase, if only sums lead to it."""
    current: Seen | None = join
    while current is not None and current.name in ADDING:
        before = walk.ancestors_of(current.index) & walk.stairs
        if any(_equal(walk.ops[index], current) for index in before):
            return current
        readers = [op for op in walk.ops[current.index + 1 :] if current.index in op.parents]
        current = readers[0] if len(readers) == 1 else None
    return None


def _equal(op: Seen, total: Seen) -> bool:
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


def stairs(walk: Walk) -> frozenset[int]:
    """Ops whose data come from the input through a staircase only, on every way that torch saw.

    A scale that is shared by many entries is no way, though it may be taken from the data as well.
    """
    found: set[int] = set()
    for op in walk.ops:
        carrying = [walk.ops[p] for p in op.parents if walk.ops[p].carries]
        whole = {p.index for p in carrying if _entries(p) >= _entries(op)}
        behind = op.kind == "torch" and whole and whole <= found and not walk.reads_input(op)
        if behind or (op.carries and (op.name in HARD or op.name in COMPARISONS)):
            found.add(op.index)
    return frozenset(found)


def _entries(op: Seen) -> int:
    return max((data.numel() for data in op.data), default=0)
