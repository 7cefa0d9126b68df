"""Trace a model: three or four observed forward passes, one backward pass, and the search for culprits."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskaudit.preserve import preserved
from maskaudit.results import Location
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import customary_eps
from maskaudit.trace.behaviour import flat_share, gradient_health, output_kind, seeded, twin
from maskaudit.trace.culprits import find_culprits
from maskaudit.trace.functions import check_function
from maskaudit.trace.observe import Observer, Seen, random_states, tensors_of
from maskaudit.trace.records import Culprit, Flow, FunctionCheck, Op, Randomness, Trace
from maskaudit.trace.scope import Site, graph_visible
from maskaudit.trace.walk import Evidence

#: Points that a trace looks at; more cost memory and change nothing.
MAX_POINTS = 16


def trace_model(target: Target, x: Tensor, y: Tensor, *, eps: float | None = None) -> Trace:
    """Trace the forward and the backward pass of a target and name what hides its gradient.

    Args:
        target: the open target.
        x: inputs (N, …) in bounds; the first `MAX_POINTS` are used.
        y: labels (N,), best those that the target answers.
        eps: radius at which the gradient ought to be useful, in input units; by default the customary
            L∞ radius for such inputs.

    The model and the random state are put back bit for bit, also after an exception.

    Raises:
        ModelError: when the model raises or returns something that is not class scores.
    """
    x, y = x[:MAX_POINTS].detach(), y[:MAX_POINTS]
    if eps is None:
        eps = customary_eps("Linf", tuple(x.shape[1:]), target.bounds)
    with preserved(target.model), graph_visible():
        return _trace(target, x, y, eps)


def _trace(target: Target, x: Tensor, y: Tensor, eps: float) -> Trace:
    observer, scores = _observe(target, x, target.seed)
    raw = observer.raw
    assert raw is not None
    signs = PointRNG.create(target.seed, "trace perturbation", torch.arange(len(x))).signs(x.shape[1:]).to(x)
    low, high = target.bounds
    moved, _ = _observe(target, (x + eps * signs).clamp(low, high), target.seed, keep_tensors=False)
    randomness = _randomness(target, x, observer, scores)
    health = gradient_health(target, x, y, eps)
    with seeded(target.seed):
        checks = {call.function.__name__: check_function(call, target.seed) for call in observer.functions.values()}
    changes = _changes(observer.ops, moved.ops)
    evidence = Evidence(observer, raw, scores.detach(), y, changes, _phases(observer.ops, moved.ops), health, checks)
    suspects = find_culprits(evidence)
    culprits = [*suspects.culprits, *_stochastic(randomness)]
    return Trace(
        kind=_kind(target.model),
        points=len(x),
        ops=tuple(_frozen(op, op.index in changes, suspects.flows.get(op.index)) for op in observer.ops),
        cuts=tuple(suspects.cuts),
        functions=tuple(_placed(check, observer.ops) for check in checks.values()),
        randomness=randomness,
        output_kind=output_kind(raw, flat_share(scores, y)),
        health=health,
        optimises=tuple(observer.optimises),
        culprits=tuple(culprits),
        identities=tuple(p for p, (before, after) in observer.modules.items() if p and before == after),
    )


def _observe(target: Target, x: Tensor, seed: int, *, keep_tensors: bool = True) -> tuple[Observer, Tensor]:
    """One observed forward pass; returns the record and the scores (N, K), graph alive."""
    leaf = x.clone().requires_grad_(True)
    observer = Observer(target.model, leaf, keep_tensors=keep_tensors)

    def model(inputs: Tensor) -> Any:
        output = target.model(inputs)
        found = tensors_of(output)
        if found:
            with _paused(observer):
                observer.adopt(found[:1], Site(None, None))
            observer.raw = found[0]
        return output

    with seeded(seed), torch.enable_grad(), observer.watching():
        scores = twin(target, model).differentiable_scores(leaf)
    return observer, scores


@contextlib.contextmanager
def _paused(observer: Observer) -> Iterator[None]:
    """What runs inside is not recorded."""
    with torch._C.DisableTorchFunction():
        yield


def _randomness(target: Target, x: Tensor, first: Observer, scores: Tensor) -> Randomness | None:
    """Draw again, with the same and with another seed; None when the model answers alike."""
    before_run = _states_after_seeding(target.seed)
    same, scores_same = _observe(target, x, target.seed, keep_tensors=False)
    other, scores_other = _observe(target, x, target.seed + 1, keep_tensors=False)
    private = not torch.equal(scores, scores_same)
    if not private and torch.equal(scores, scores_other):
        return None
    with seeded(target.seed), torch.no_grad():
        twin(target).scores(x)
        after = random_states()
    sources = [name for name, state in after.items() if state != before_run[name]]
    if private:
        sources.append("private")
    start = _first_difference(first.ops, (same if private else other).ops)
    change = (scores_other - scores).detach()
    return Randomness(
        sources=tuple(sources),
        location=first.ops[start].location if start is not None else Location(),
        logit_spread=float(change.abs().amax(dim=1).median()),
        flips=float((scores_other.argmax(dim=1) != scores.argmax(dim=1)).double().mean()),
    )


def _states_after_seeding(seed: int) -> dict[str, bytes]:
    with seeded(seed):
        return random_states()


def _first_difference(a: list[Seen], b: list[Seen]) -> int | None:
    for left, right in zip(a, b, strict=False):
        if left.name != right.name or left.prints != right.prints:
            return left.index
    return None


def _changes(a: list[Seen], b: list[Seen]) -> set[int]:
    """Ops whose data moved with the input; where control flow parted, everything after counts as moved."""
    moved: set[int] = set()
    for position, op in enumerate(a):
        other = b[position] if position < len(b) else None
        if other is None or other.name != op.name:
            return moved | {later.index for later in a[position:]}
        if op.kind == "escape" or op.prints != other.prints or (op.nodes and not op.prints):
            moved.add(op.index)
    return moved


def _phases(a: list[Seen], b: list[Seen]) -> dict[int, float]:
    """Median absolute change of the argument of periodic ops."""
    result = {}
    for left, right in zip(a, b, strict=False):
        if left.phase is not None and right.phase is not None and left.phase.shape == right.phase.shape:
            change = (left.phase - right.phase).abs().double().flatten()
            change = change[change > 0]
            if len(change):
                result[left.index] = float(change.median())
    return result


def _stochastic(randomness: Randomness | None) -> list[Culprit]:
    if randomness is None:
        return []
    flips = randomness.flips
    confidence: Literal["high", "medium", "low"] = "high" if flips > 0.2 else "medium" if flips > 0.02 else "low"
    sources = ", ".join(randomness.sources) or "unknown source"
    sentence = f"Answers are random ({sources}): {flips:.0%} of decisions flip."
    return [Culprit("stochastic", randomness.location, confidence, sentence)]


def _kind(model: object) -> Literal["module", "torchscript", "callable"]:
    if isinstance(model, torch.jit.ScriptModule):
        return "torchscript"
    return "module" if isinstance(model, nn.Module) else "callable"


def _placed(check: FunctionCheck, ops: list[Seen]) -> FunctionCheck:
    """The check with the module in which the Function was met."""
    for op in ops:
        if op.kind == "function" and op.name == check.name:
            return dataclasses.replace(check, location=dataclasses.replace(check.location, module=op.module))
    return check


def _frozen(op: Seen, changes: bool, flow: Flow | None) -> Op:
    return Op(
        index=op.index,
        location=op.location,
        nodes=tuple(node.name() for node in op.nodes),
        shape=_shape(op.outputs),
        in_shape=_shape(op.inputs),
        live_in=op.live_in,
        live_out=op.live_out,
        changes=changes,
        parents=op.parents,
        kind=op.kind,
        grad_mode=op.grad_mode,
        flow=flow,
    )


def _shape(tensors: tuple[Tensor, ...]) -> tuple[int, ...] | None:
    return tuple(tensors[0].shape) if tensors else None
