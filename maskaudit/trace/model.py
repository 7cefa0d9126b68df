"""Trace a model: two observed forward passes, one backward pass, a few differences, and the search for culprits."""

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
from maskaudit.trace.behaviour import (
    DIRECTIONS,
    FEW_DIRECTIONS,
    Pass,
    flat_share,
    gradient_health,
    margin_gradient,
    output_kind,
    seeded,
    twin,
)
from maskaudit.trace.culprits import Suspects, behind_cuts, find_culprits, ranked
from maskaudit.trace.flow import gradient_flow, margin_cotangent
from maskaudit.trace.functions import check_function
from maskaudit.trace.observe import Observer, Seen, random_states, tensors_of
from maskaudit.trace.records import Culprit, Flow, FunctionCheck, Op, Randomness, Trace
from maskaudit.trace.scope import Site, graph_visible
from maskaudit.trace.walk import Evidence

#: Points that a trace looks at; more cost memory and change nothing.
MAX_POINTS = 16
#: Points of the first, cheap look, after which most healthy models are done with.
FEW_POINTS = 8
#: A first look whose directional derivatives correlate at least this well with central differences needs no second
#: one; healthy networks mostly do (docs/verdict.md: .92 to .99 at ε/4).
COMFORTABLE = 0.95
#: Points that are answered once more, alone, to see whether they are answered alike.
AGAIN_POINTS = 2
#: Scores answered again may differ by this share of their spread: other batch sizes round otherwise.
ROUNDING = 1e-3


def trace_model(target: Target, x: Tensor, y: Tensor, *, eps: float | None = None) -> Trace:
    """Trace the forward and the backward pass of a target and name what hides its gradient.

    A first look takes `FEW_POINTS` points. Where it leaves a doubt, the model is looked at again with `MAX_POINTS`
    points and more directions, and only that second look is reported.

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
        if len(x) > FEW_POINTS:
            trace = _trace(target, x[:FEW_POINTS], y[:FEW_POINTS], eps, directions=FEW_DIRECTIONS)
            if _comfortable(trace) or _plain(trace):
                return trace
        return _trace(target, x, y, eps, directions=DIRECTIONS)


def _comfortable(trace: Trace) -> bool:
    """Whether a first look found nothing that a second one could explain."""
    health = trace.health
    agrees = min(value for _, value in health.agreement) >= COMFORTABLE
    clean = health.connected and health.zero_share == 0 and health.ce_zero_share == 0
    return agrees and clean and trace.healthy and trace.randomness is None and trace.batch_dependent is None


def _plain(trace: Trace) -> bool:
    """Whether a first look found every single point without a gradient, and what takes it."""
    health = trace.health
    nowhere = not health.connected or health.zero_share == 1 or health.ce_zero_share == 1
    sure = any(culprit.confidence == "high" for culprit in trace.culprits)
    return nowhere and sure and trace.randomness is None


def _trace(target: Target, x: Tensor, y: Tensor, eps: float, *, directions: int) -> Trace:
    observer, scores, consumed = _observe(target, x, target.seed)
    raw = observer.raw
    assert raw is not None
    signs = PointRNG.create(target.seed, "trace perturbation", torch.arange(len(x))).signs(x.shape[1:]).to(x)
    low, high = target.bounds
    moved, _, _ = _observe(target, (x + eps * signs).clamp(low, high), target.seed, keep_tensors=False)
    randomness, batch_dependent = _repeat(target, x, observer, scores, consumed)
    flows, grad = gradient_flow(observer, [(raw, margin_cotangent(raw, y))], len(x))
    target.count_backward(len(x))
    if target.outputs != "logits" or target.reject_class is not None:
        grad = margin_gradient(target, observer.leaf, scores, y)
    alone = randomness is not None or batch_dependent is not None
    health = gradient_health(target, Pass(observer.leaf, scores, grad, alone), y, eps, directions=directions)
    with seeded(target.seed):
        checks = {call.function.__name__: check_function(call, target.seed) for call in observer.functions.values()}
    changes = _changes(observer.ops, moved.ops)
    phases = _phases(observer.ops, moved.ops)
    evidence = Evidence(observer, raw, scores, y, changes, phases, health, checks, flows)
    suspects = find_culprits(evidence)
    found = suspects.culprits
    if suspects.dead_way:
        found = ranked([*found, *_behind_cuts(target, evidence, suspects)])
    culprits = [*found, *_stochastic(randomness)]
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
        batch_dependent=batch_dependent,
    )


def _behind_cuts(target: Target, evidence: Evidence, suspects: Suspects) -> list[Culprit]:
    """Suspects behind what cuts the gradient, seen in a pass that starts a new graph there."""
    x = evidence.observer.leaf.detach()
    revived, scores, _ = _observe(target, x, target.seed, revive=suspects.dead_way)
    raw = revived.raw
    same = [op.name for op in revived.ops] == [op.name for op in evidence.observer.ops]
    if raw is None or not same or not revived.live(raw):
        return []
    flows, _ = gradient_flow(revived, [(raw, margin_cotangent(raw, evidence.y))], len(x))
    behind = dataclasses.replace(evidence, observer=revived, raw=raw, scores=scores, flows=flows)
    return behind_cuts(behind, suspects.culprits)


def _observe(
    target: Target, x: Tensor, seed: int, *, keep_tensors: bool = True, revive: frozenset[int] = frozenset()
) -> tuple[Observer, Tensor, tuple[str, ...]]:
    """One observed forward pass: the record, the scores (N, K) with their graph, and the generators it consumed."""
    leaf = x.clone().requires_grad_(True)
    observer = Observer(target.model, leaf, keep_tensors=keep_tensors, revive=revive)

    def model(inputs: Tensor) -> Any:
        output = target.model(inputs)
        found = tensors_of(output)
        if found:
            with _paused(observer):
                observer.adopt(found[:1], Site(None, None))
            observer.raw = found[0]
        return output

    with seeded(seed), torch.enable_grad():
        before = random_states()
        with observer.watching():
            scores = twin(target, model).differentiable_scores(leaf)
        consumed = tuple(name for name, state in random_states().items() if state != before[name])
    return observer, scores, consumed


@contextlib.contextmanager
def _paused(observer: Observer) -> Iterator[None]:
    """What runs inside is not recorded."""
    with torch._C.DisableTorchFunction():
        yield


def _repeat(
    target: Target, x: Tensor, first: Observer, scores: Tensor, consumed: tuple[str, ...]
) -> tuple[Randomness | None, Location | None]:
    """Answer a few points again, alone; look closer where the answers differ or random numbers were drawn.

    Returns what is random, and the op by which the answer to a point depends on the other points of its batch.
    """
    few = x[:AGAIN_POINTS]
    with seeded(target.seed):
        again = twin(target).scores(few)
    before = scores.detach()[: len(few)]
    spread = float(before.amax() - before.amin())
    alike = float((again - before).abs().max()) <= ROUNDING * max(spread, torch.finfo(torch.float32).tiny)
    if alike and not consumed:
        return None, None
    randomness = _randomness(target, x, first, scores, consumed)
    if alike or randomness is not None:
        return randomness, None
    dependent = next((op.location for op in first.ops if op.across_batch), Location())
    return None, dependent


def _randomness(
    target: Target, x: Tensor, first: Observer, scores: Tensor, consumed: tuple[str, ...]
) -> Randomness | None:
    """Draw again, with the same and with another seed; None when the model answers alike."""
    same, scores_same, _ = _observe(target, x, target.seed, keep_tensors=False)
    private = not torch.equal(scores, scores_same)
    if not private and not consumed:
        return None
    other, scores_other, _ = _observe(target, x, target.seed + 1, keep_tensors=False)
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
