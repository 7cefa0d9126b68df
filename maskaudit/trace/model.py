"""Trace a model: an observed forward pass, a backward pass, a few differences, and the search for culprits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from maskaudit.preserve import preserved
from maskaudit.target import Target
from maskaudit.threat import customary_eps
from maskaudit.trace.behaviour import loss_slope, output_kind, seed_generators, zero_share
from maskaudit.trace.culprits import Suspects, behind_cuts, find_culprits, ranked
from maskaudit.trace.flow import gradient_flow, margin_cotangent
from maskaudit.trace.functions import check_function
from maskaudit.trace.health import (
    CLEAR_BY,
    Differences,
    Pass,
    gradient_health,
    margin_gradient,
    surely_good,
    surely_poor,
)
from maskaudit.trace.passes import (
    Movement,
    answers_alike,
    batch_dependence,
    measure_randomness,
    observe,
    observe_first,
)
from maskaudit.trace.records import Culprit, Flow, FunctionCheck, Op, Randomness, Trace
from maskaudit.trace.scope import graph_visible
from maskaudit.trace.seen import Seen
from maskaudit.trace.walk import Evidence

#: Points that a trace looks at; more cost memory and change nothing.
MAX_POINTS = 16
#: Points of the first, cheap look, after which most models are done with.
FEW_POINTS = 8
#: Random directions per point that the first look and the second reach, round by round, and by how many standard errors
#: a correlation has to be clear before a round to make it needless. On few pairs, whose errors are larger than Fisher's
#: where gradients are heavy-tailed, the second look takes only what is beyond doubt.
FEW_ROUNDS = ((1, math.inf), (2, CLEAR_BY))
ROUNDS = ((1, math.inf), (2, 4.0), (4, CLEAR_BY))


def trace_model(target: Target, x: Tensor, y: Tensor, *, eps: float | None = None) -> Trace:
    """Trace the forward and the backward pass of a target and name what hides its gradient.

    A first look takes `FEW_POINTS` points. Where it leaves a doubt, or answers are random, the model is looked at again
    with `MAX_POINTS` points and more directions, and only that second look is reported; of the first it keeps the
    differences that were measured.

    Args:
        target: the open target.
        x: inputs (N, …) in bounds; the first `MAX_POINTS` are used.
        y: labels (N,), best those that the target answers.
        eps: radius at which the gradient ought to be useful, in input units; by default `usual_radius`.

    The model and the random state are put back bit for bit, also after an exception.

    Raises:
        ModelError: when the model raises or returns something that is not class scores.
    """
    x, y = x[:MAX_POINTS].detach(), y[:MAX_POINTS]
    eps = usual_radius(target, x) if eps is None else eps
    differences = Differences(eps)
    with preserved(target.model), graph_visible():
        alike = False
        if len(x) > FEW_POINTS:
            trace = _look(target, x[:FEW_POINTS], y[:FEW_POINTS], eps, differences, rounds=FEW_ROUNDS, first=True)
            if trace is not None and _settled(trace):
                return trace
            alike = trace is not None
        trace = _look(target, x, y, eps, differences, rounds=ROUNDS, alike=alike)
        assert trace is not None
        return trace


def usual_radius(target: Target, x: Tensor) -> float:
    """The customary L∞ radius for inputs like `x` (N, …)."""
    return customary_eps("Linf", tuple(x.shape[1:]), target.bounds)


def _settled(trace: Trace) -> bool:
    """Whether a first look leaves nothing to a second one: a good gradient, or a poor one and what makes it so."""
    if trace.healthy:
        return surely_good(trace.health)
    return surely_poor(trace.health, trace.points)


def _look(
    target: Target, x: Tensor, y: Tensor, eps: float, differences: Differences, *, rounds: Sequence[tuple[int, float]],
    first: bool = False, alike: bool = False,
) -> Trace | None:  # fmt: skip
    """One look at points `x`; a first one gives up (None) where answers may be random or depend on the batch.

    `alike` says that an earlier look has seen that they are not and do not.
    """
    observer, scores, consumed = observe_first(target, x)
    raw = observer.raw
    assert raw is not None
    if first and consumed:
        return None
    alike = alike or answers_alike(target, x, scores)
    if first and not alike:
        return None
    randomness = None if alike and not consumed else measure_randomness(target, x, observer, scores, consumed)
    batch_dependent = None if alike or randomness is not None else batch_dependence(observer)
    alone = randomness is not None or batch_dependent is not None
    movement = Movement(target, x, eps, observer.ops)
    flows, grad = gradient_flow(observer, [(raw, margin_cotangent(raw, y))], len(x))
    target.count_backward(len(x))
    if target.outputs != "logits" or target.reject_class is not None:
        grad = margin_gradient(target, observer.leaf, scores, y)
    slope = loss_slope(scores, y)
    health = gradient_health(target, Pass(observer.leaf, scores, slope, grad, alone), y, differences, rounds=rounds)
    seed_generators(target.seed)
    checks = {call.function.__name__: check_function(call, target.seed) for call in observer.functions.values()}
    flat = zero_share(slope)
    evidence = Evidence(observer, raw, scores, y, movement, health, checks, flows, flat)
    suspects = find_culprits(evidence)
    found = suspects.culprits
    if suspects.dead_way:
        found = ranked([*found, *_behind_cuts(target, evidence, suspects)])
    culprits = [*found, *_stochastic(randomness)]
    changes = movement.changes if culprits or health.poor else None
    return Trace(
        kind=_kind(target.model),
        points=len(x),
        ops=tuple(_frozen(op, changes, suspects.flows.get(op.index)) for op in observer.ops),
        cuts=tuple(suspects.cuts),
        functions=tuple(_placed(check, observer.ops) for check in checks.values()),
        randomness=randomness,
        output_kind=output_kind(raw, flat),
        health=health,
        optimises=tuple(observer.optimises),
        culprits=tuple(culprits),
        beside=tuple(suspects.beside),
        identities=tuple(p for p, (before, after) in observer.modules.items() if p and before == after),
        batch_dependent=batch_dependent,
    )


def _behind_cuts(target: Target, evidence: Evidence, suspects: Suspects) -> list[Culprit]:
    """Suspects behind what cuts the gradient, seen in a pass that starts a new graph there."""
    x = evidence.observer.leaf.detach()
    revived, scores = observe(target, x, revive=suspects.dead_way)
    raw = revived.raw
    same = [op.name for op in revived.ops] == [op.name for op in evidence.observer.ops]
    if raw is None or not same or not revived.live(raw):
        return []
    flows, _ = gradient_flow(revived, [(raw, margin_cotangent(raw, evidence.y))], len(x))
    behind = dataclasses.replace(evidence, observer=revived, raw=raw, scores=scores, flows=flows)
    return behind_cuts(behind, suspects.culprits)


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


def _frozen(op: Seen, changes: set[int] | None, flow: Flow | None) -> Op:
    return Op(
        index=op.index,
        location=op.location,
        nodes=tuple(node.name() for node in op.nodes),
        shape=_shape(op.outputs),
        in_shape=_shape(op.inputs),
        live_in=op.live_in,
        live_out=op.live_out,
        changes=None if changes is None else op.index in changes,
        parents=op.parents,
        kind=op.kind,
        grad_mode=op.grad_mode,
        flow=flow,
    )


def _shape(tensors: tuple[Tensor, ...]) -> tuple[int, ...] | None:
    return tuple(tensors[0].shape) if tensors else None
