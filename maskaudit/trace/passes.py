"""Observed forward passes, and what differs between two of them: randomness, and what moves with the input."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from maskaudit.preserve import drawn_since, seed_generators
from maskaudit.results import Location
from maskaudit.rng import PointRNG
from maskaudit.target import Target, answer_in
from maskaudit.trace.behaviour import twin
from maskaudit.trace.observe import Observer
from maskaudit.trace.records import Randomness
from maskaudit.trace.scope import Site
from maskaudit.trace.seen import Seen

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
    leaf = x.clone().requires_grad_(True)
    observer = Observer(target.model, leaf, keep_tensors=keep_tensors, revive=revive)

    def model(inputs: Tensor) -> Any:
        with observer.watching(inputs):
            output = target.model(inputs)
            answer = answer_in(output)
            if isinstance(answer, Tensor):
                with torch._C.DisableTorchFunction():
                    observer.adopt((answer,), Site(None, None))
                observer.raw = answer
        return output

    seed_generators(target.seed if seed is None else seed)
    with torch.enable_grad():
        scores = twin(target, model).differentiable_scores(leaf)
    return observer, scores


def observe_first(target: Target, x: Tensor) -> tuple[Observer, Tensor, tuple[str, ...]]:
    """The same, and the names of the global generators that it consumed."""
    observer, scores = observe(target, x)
    return observer, scores, drawn_since(target.seed)


def answers_alike(target: Target, x: Tensor, scores: Tensor, again: Tensor | None = None) -> bool:
    """Whether the first `AGAIN_POINTS` of the points (N, …), answered again, get the scores (N, K) they had.

    `again` are those answers if they were given in other company; else the points are asked alone.
    """
    if again is None:
        seed_generators(target.seed)
        again = twin(target).scores(x[:AGAIN_POINTS])
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


def _first_difference(a: list[Seen], b: list[Seen]) -> int | None:
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

    def __init__(self, target: Target, x: Tensor, eps: float, ops: list[Seen]) -> None:
        self._target, self._x, self._eps, self._ops = target, x, eps, ops

    @cached_property
    def _moved(self) -> list[Seen]:
        low, high = self._target.bounds
        rng = PointRNG.create(self._target.seed, "trace perturbation", torch.arange(len(self._x)))
        signs = rng.signs(self._x.shape[1:]).to(self._x)
        observer, _ = observe(self._target, (self._x + self._eps * signs).clamp(low, high), keep_tensors=False)
        return observer.ops

    @cached_property
    def changes(self) -> set[int]:
        """Ops whose data moved with the input; where control flow parted, everything after counts as moved."""
        moved: set[int] = set()
        for position, op in enumerate(self._ops):
            other = self._moved[position] if position < len(self._moved) else None
            if other is None or other.name != op.name:
                return moved | {later.index for later in self._ops[position:]}
            if op.kind == "escape" or (op.nodes and not op.data) or not op.made_the_same(other):
                moved.add(op.index)
        return moved

    @cached_property
    def phases(self) -> dict[int, float]:
        """Median absolute change of the argument of periodic ops, by index."""
        result: dict[int, float] = {}
        if all(op.phase is None for op in self._ops):
            return result
        for left, right in zip(self._ops, self._moved, strict=False):
            if left.phase is not None and right.phase is not None and left.phase.shape == right.phase.shape:
                change = (left.phase - right.phase).abs().double().flatten()
                change = change[change > 0]
                if len(change):
                    result[left.index] = float(change.median())
        return result
