"""Observed forward passes, and what differs between two of them: randomness, and what moves with the input."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from maskaudit.results import Location
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.chunks import in_batches
from maskaudit.target.preserve import drawn_since, seed_generators
from maskaudit.target.scores import answer_in
from maskaudit.trace.behaviour import copy_of
from maskaudit.trace.observe import Observer, SeenEnough
from maskaudit.trace.op_notes import RecordedOp
from maskaudit.trace.records import Randomness
from maskaudit.trace.scope import Frame, as_written

#: Points that are answered once more, alone, to see whether they are answered alike.
AGAIN_POINTS = 2
#: Scores answered again may differ by this share of their spread: other batch sizes round otherwise.
ROUNDING = 1e-3


def observe(
    target: Target, x: Tensor, seed: int | None = None, *, keep_tensors: bool = True,
    revive: frozenset[int] = frozenset(),
) -> tuple[Observer, Tensor]:  # fmt: skip
    """One observed forward pass: the record, and the scores (N, K) with their graph.

    The global generators are seeded (by the target's seed if no other is given) and left as the model leaves them.
    """
    observer = Observer(as_written(target.model), _leaf(x), keep_tensors=keep_tensors, revive=revive)
    return observer, _watched(target, observer, target.seed if seed is None else seed)


def observe_start(target: Target, x: Tensor, until: int) -> Observer:
    """The record of what a forward pass does up to the op of that index, data only; the rest of it is not run."""
    observer = Observer(as_written(target.model), _leaf(x), keep_tensors=False, until=until)
    with contextlib.suppress(SeenEnough):
        _watched(target, observer, target.seed)
    return observer


def _leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_(True)


def _watched(target: Target, observer: Observer, seed: int) -> Tensor:
    written, most, key = as_written(target.model), target.form.most, target.form.output_key
    form = target.form.changed(alone=False, most=0, output_key="" if most else key)

    def model(inputs: Tensor) -> Any:
        with observer.watching(inputs):
            output = in_batches(written, inputs, most, key) if most else written(inputs)
            answer = answer_in(output, form.output_key)
            if isinstance(answer, Tensor):
                with torch._C.DisableTorchFunction():
                    observer.adopt((answer,), Frame(None, None))
                observer.raw = answer
        return output

    seed_generators(seed)
    watched = copy_of(target, model)
    watched.form = form  # one record of all points
    with torch.enable_grad():
        return watched.differentiable_scores(observer.leaf)


def observe_first(target: Target, x: Tensor) -> tuple[Observer, Tensor, tuple[str, ...]]:
    """The same, and the names of the global generators that it consumed."""
    observer, scores = observe(target, x)
    return observer, scores, drawn_since(target.seed)


def answers_alike(target: Target, x: Tensor, scores: Tensor, again: Tensor | None = None) -> bool:
    """Whether the first `AGAIN_POINTS` of the points (N, …), answered again, get the scores (N, K) they had.

    `again` are those answers if they were given beside other points; else the points are asked alone.
    """
    if again is None:
        seed_generators(target.seed)
        again = copy_of(target).scores(x[:AGAIN_POINTS])
    before = scores.detach()[: len(again)]
    spread = float(before.amax() - before.amin())
    return float((again - before).abs().max()) <= ROUNDING * max(spread, torch.finfo(torch.float32).tiny)


def batch_dependence(first: Observer) -> Location:
    """The op by which the answer to a point depends on the other points of its batch, if it is known."""
    return next((op.location for op in first.ops if op.across_batch), Location())


def measure_randomness(
    target: Target, x: Tensor, first: Observer, scores: Tensor, consumed: tuple[str, ...]
) -> Randomness | None:
    """Draw again, with the same and with another seed; None when the model answers alike."""
    same, scores_same = observe(target, x, keep_tensors=False)
    private = not torch.equal(scores, scores_same)
    if not private and not consumed:
        return None
    other, scores_other = observe(target, x, target.seed + 1, keep_tensors=False)
    if not private and torch.equal(scores, scores_other):
        return None
    start = _first_difference(first.ops, (same if private else other).ops)
    change = (scores_other - scores).detach()
    return Randomness(
        sources=(*consumed, *(("state" if first.state_written else "private",) if private else ())),
        location=first.ops[start].location if start is not None else Location(),
        logit_spread=float(change.abs().amax(dim=1).median()),
        flips=float((scores_other.argmax(dim=1) != scores.argmax(dim=1)).double().mean()),
    )


def _first_difference(a: list[RecordedOp], b: list[RecordedOp]) -> int | None:
    for left, right in zip(a, b, strict=False):
        if left.name != right.name or not left.made_the_same(right):
            return left.index
    return None


class Movement:
    """What an op's data do when every point moves by ε; the pass that shows it is made when it is first asked for.

    Args:
        target: the open target.
        x: the observed inputs (N, …).
        eps: size of the perturbation, in input units.
        ops: what was recorded at `x`.
    """

    def __init__(self, target: Target, x: Tensor, eps: float, ops: list[RecordedOp]) -> None:
        self._target, self._x, self._eps, self._ops = target, x, eps, ops

    def _moved(self) -> Tensor:
        low, high = self._target.bounds
        rng = PointRNG.create(self._target.seed, "trace perturbation", torch.arange(len(self._x)))
        return (self._x + self._eps * rng.signs(self._x.shape[1:]).to(self._x)).clamp(low, high)

    @cached_property
    def _others(self) -> list[RecordedOp]:
        observer, _ = observe(self._target, self._moved(), keep_tensors=False)
        return observer.ops

    @cached_property
    def changes(self) -> set[int]:
        """Ops whose data moved with the input; where control flow parted, everything after counts as moved."""
        moved: set[int] = set()
        for position, op in enumerate(self._ops):
            other = self._others[position] if position < len(self._others) else None
            if other is None or other.name != op.name:
                return moved | {later.index for later in self._ops[position:]}
            if op.kind == "escape" or (op.nodes and not op.data) or not op.made_the_same(other):
                moved.add(op.index)
        return moved

    def given(self, op: RecordedOp) -> bool:
        """Whether an op reads or makes data that move with the input."""
        return not self.changes.isdisjoint((op.index, *op.parents))

    @cached_property
    def phases(self) -> dict[int, float]:
        """Median absolute change of the argument of periodic ops, by index."""
        periodic = [op for op in self._ops if op.phase is not None]
        if not periodic:
            return {}
        others = observe_start(self._target, self._moved(), periodic[-1].index).ops
        result: dict[int, float] = {}
        for op in periodic:
            other = others[op.index].phase if op.index < len(others) else None
            if op.phase is not None and other is not None and op.phase.shape == other.shape:
                change = (op.phase - other).abs().double().flatten()
                change = change[change > 0]
                if len(change):
                    result[op.index] = float(change.median())
        return result
