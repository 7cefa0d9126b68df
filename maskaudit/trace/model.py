"""Trace a model: an observed forward pass, a backward pass, a few differences, and the search for culprits."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.errors import GradientError
from maskaudit.results import Confidence, Location
from maskaudit.target import Target
from maskaudit.target.fit import FEW, in_type
from maskaudit.target.kinds import output_kind
from maskaudit.target.memory import give_back
from maskaudit.target.passes import out_of_memory
from maskaudit.target.preserve import preserved_random_state, seed_generators
from maskaudit.threat import customary_eps
from maskaudit.trace.behaviour import loss_slope, model_kind, zero_share
from maskaudit.trace.branches import forks
from maskaudit.trace.culprits import Clues, Suspects, behind_cuts, find_culprits, ranked, shrinks_scores
from maskaudit.trace.differences import CLEAR_BY, Differences
from maskaudit.trace.flow import gradient_flow, margin_cotangent
from maskaudit.trace.functions import check_function
from maskaudit.trace.health import (
    Gradients,
    deciding_pair,
    further_gradients,
    gradient_health,
    gradients,
    margin_gradient,
    surely_good,
    surely_poor,
)
from maskaudit.trace.observe import Observer
from maskaudit.trace.op_notes import RecordedOp
from maskaudit.trace.opgraph import OpGraph
from maskaudit.trace.passes import (
    AGAIN_POINTS,
    Movement,
    answers_alike,
    batch_dependence,
    measure_randomness,
    observe,
    observe_first,
)
from maskaudit.trace.records import Culprit, Flow, FunctionCheck, GradientHealth, Op, Randomness, Trace
from maskaudit.trace.scope import graph_visible
from maskaudit.trace.without_gradient import refused
from maskaudit.verdict.limits import OFTEN_FLIPS, SELDOM_FLIPS

#: Points that a trace looks at; more cost memory and change nothing.
MAX_POINTS = 16
#: Points of the first, cheap look, after which most models are done with.
FEW_POINTS = 8
#: Random directions per point that the first look and the second reach, round by round, and by how many standard errors
#: a correlation has to be clear before a round to make it needless. On few pairs, whose errors are larger than Fisher's
#: where gradients are heavy-tailed, the second look takes only what is beyond doubt.
FEW_ROUNDS = ((1, math.inf), (2, CLEAR_BY))
ROUNDS = ((1, 4.0), (2, 4.0), (4, CLEAR_BY))


def trace_model(target: Target, x: Tensor, y: Tensor, *, eps: float | None = None) -> Trace:
    """Trace the forward and the backward pass of a target and name what hides its gradient.

    `FEW_POINTS` points are recorded. Where that leaves a doubt, the gradient is compared at `MAX_POINTS` and along more
    directions. Answers that are random or depend on the batch are recorded again, at `MAX_POINTS`.

    Args:
        target: the open target; what the passes do to its model is undone when it is closed.
        x: inputs (N, …) in bounds; the first `MAX_POINTS` are used.
        y: labels (N,), best those that the target answers.
        eps: radius at which the gradient ought to be useful, in input units; by default `usual_radius`.

    Where memory does not suffice for so many, half of them are looked at, and so on. The random state is put back, also
    after an exception.

    Raises:
        ModelError: when the model raises or returns something that is not class scores.
    """
    x, y = x[:MAX_POINTS].detach(), y[:MAX_POINTS]
    eps = usual_radius(target, x) if eps is None else eps
    while True:
        before = target.ledger.copy()
        try:
            return _trace_of(target, x, y, eps)
        except Exception as error:
            if not out_of_memory(error) or len(x) == 1:
                raise
        target.ledger.forwards, target.ledger.backwards = before.forwards, before.backwards
        x, y = x[: len(x) // 2], y[: len(y) // 2]
        give_back(target.device)  # outside the clause, which holds what ran out


def _trace_of(target: Target, x: Tensor, y: Tensor, eps: float) -> Trace:
    """The trace on exactly these points."""
    with preserved_random_state(), graph_visible():
        try:
            observer, scores, consumed = observe_first(target, x[:FEW_POINTS])
        except GradientError as error:
            target.gradient_failure = target.gradient_failure or str(error)
            return refused(target, x[:FEW_POINTS], eps, error)
        trace = None if consumed else _traced(target, observer, scores, x, y, eps)
        return _traced_alone(target, x, y, eps) if trace is None else trace


@dataclass(frozen=True)
class _Look:
    """One recorded pass, forward and backward.

    Attributes:
        graph: the record of the forward pass; scores: the target's (N, K); y: labels (N,).
        slope: derivative (N, K) of cross-entropy with respect to the scores.
        found: what came out of the backward pass.
    """

    graph: OpGraph
    scores: Tensor
    y: Tensor
    slope: Tensor
    found: Gradients


def _look(target: Target, observer: Observer, scores: Tensor, y: Tensor, eps: float) -> _Look:
    """Take the recorded pass back."""
    raw = observer.raw
    assert raw is not None
    pair = deciding_pair(target, scores, y)
    flows, grad = gradient_flow(observer, [(raw, margin_cotangent(raw, pair))], len(y))
    target.count_backward(len(y))
    target.gradient_failure = target.gradient_failure or next(iter(observer.failed.values()), observer.failure)
    if target.outputs != "logits" or target.reject_class is not None:
        grad = margin_gradient(target, observer.leaf, scores, pair)
    slope = loss_slope(scores, y)
    found = gradients(target, observer.leaf, scores, y, pair=pair, slope=slope, grad=grad)
    graph = OpGraph(observer, raw, flows, Movement(target, found.x, eps, observer.ops))
    return _Look(graph, scores, y, slope, found)


def _traced(target: Target, observer: Observer, scores: Tensor, x: Tensor, y: Tensor, eps: float) -> Trace | None:
    """What the record of the first points says, compared at all of `x` if need be.

    None where answers are random or depend on the batch.
    """
    seen = len(scores)
    look = _look(target, observer, scores, y[:seen], eps)
    differences = Differences(eps, again=AGAIN_POINTS)
    health = gradient_health(target, look.found, differences, rounds=FEW_ROUNDS)
    if not answers_alike(target, look.found.x, look.scores, differences.answered):
        return None
    good, poor = surely_good(health), surely_poor(health, seen)
    if good or poor:
        trace = _explained(target, look, health, seen)
        straight = bool(trace.estimators) and not trace.parallel
        if (good and trace.healthy) or (poor and (straight or not trace.healthy)):  # and what makes it so
            return trace
    found = look.found + further_gradients(target, x[seen:], y[seen:]) if len(x) > seen else look.found
    return _explained(target, look, gradient_health(target, found, differences, rounds=ROUNDS), len(found.x))


def _traced_alone(target: Target, x: Tensor, y: Tensor, eps: float) -> Trace:
    """The same where answers are random or depend on the batch, so that no two passes may be made in one."""
    observer, scores, consumed = observe_first(target, x)
    look = _look(target, observer, scores, y, eps)
    randomness = measure_randomness(target, x, observer, scores, consumed)
    dependent = randomness is None and not answers_alike(target, x, scores)
    alone = randomness is not None or dependent
    health = gradient_health(target, look.found, Differences(eps), rounds=ROUNDS, together=not alone)
    where = batch_dependence(observer) if dependent else None
    return _explained(target, look, health, len(x), randomness=randomness, batch_dependent=where)


def usual_radius(target: Target, x: Tensor) -> float:
    """The customary L∞ radius for inputs like `x` (N, …)."""
    return customary_eps("Linf", tuple(x.shape[1:]), target.bounds)


def _explained(
    target: Target, look: _Look, health: GradientHealth, points: int, *, randomness: Randomness | None = None,
    batch_dependent: Location | None = None,
) -> Trace:  # fmt: skip
    """The trace, with the culprits that explain such a gradient."""
    observer = look.graph.observer
    if observer.functions:
        seed_generators(target.seed)
    checks = {call.function.__name__: check_function(call, target.seed) for call in observer.functions.values()}
    flat = zero_share(look.slope)
    clues = Clues(look.graph, look.scores, look.y, health, checks, flat)
    suspects = find_culprits(clues)
    constant = health.zero_share == 1 and _alike(look.scores)
    found = [] if constant and _underflows(target, look) else suspects.culprits
    if suspects.dead_way:
        found = ranked([*found, *_behind_cuts(target, clues, suspects)])
    culprits = [*found, *_stochastic(randomness)]
    return Trace(
        kind=model_kind(target.model),
        points=points,
        ops=tuple(_frozen(op, suspects.flows.get(op.index)) for op in observer.ops),
        cuts=tuple(suspects.cuts),
        functions=tuple(_placed(check, observer.ops) for check in checks.values()),
        randomness=randomness,
        output_kind=output_kind(target.checked(look.graph.raw.detach(), len(look.y)), target.form),
        health=dataclasses.replace(health, constant=constant),
        optimises=tuple(observer.optimises),
        culprits=tuple(culprits),
        parallel=tuple(suspects.parallel),
        estimators=tuple(suspects.estimators),
        identities=tuple(p for p, (before, after) in observer.modules.items() if p and before == after),
        batch_dependent=batch_dependent,
        forks=forks(observer, look.graph.raw),
        shrinks=shrinks_scores(look.graph),
    )


def _alike(scores: Tensor) -> bool:
    """Whether several points have the very same scores (N, K)."""
    return len(scores) > 1 and bool((scores == scores[:1]).all())


def _underflows(target: Target, look: _Look) -> bool:
    """Whether all scores are one number only because their differences are too small for the model's number type.

    Such a model decides nothing. In float64 it has a gradient, which one that hides its gradient has not.
    """
    if bool((look.scores != look.scores[0, 0]).any()):
        return False
    x = look.found.x
    exact = in_type(target, torch.float64, x[:FEW])
    grad = None if exact is None else further_gradients(exact, x.double(), look.y).grad
    return grad is not None and zero_share(grad) < 1


def _behind_cuts(target: Target, clues: Clues, suspects: Suspects) -> list[Culprit]:
    """Suspects behind what cuts the gradient, seen in a pass that starts a new graph there."""
    before = clues.graph
    x = before.observer.leaf.detach()
    revived, scores = observe(target, x, revive=suspects.dead_way)
    raw = revived.raw
    same = [op.name for op in revived.ops] == [op.name for op in before.ops]
    if raw is None or not same or not revived.live(raw):
        return []
    cotangent = margin_cotangent(raw, deciding_pair(target, scores, clues.y))
    flows, _ = gradient_flow(revived, [(raw, cotangent)], len(x))
    graph = OpGraph(revived, raw, flows, before.movement)
    return behind_cuts(dataclasses.replace(clues, graph=graph, scores=scores), suspects.culprits)


def _stochastic(randomness: Randomness | None) -> list[Culprit]:
    if randomness is None:
        return []
    flips = randomness.flips
    confidence: Confidence = "high" if flips > OFTEN_FLIPS else "medium" if flips > SELDOM_FLIPS else "low"
    sources = ", ".join(randomness.sources) or "unknown source"
    sentence = f"Answers are random ({sources}): {flips:.0%} of decisions flip."
    return [Culprit("stochastic", randomness.location, confidence, sentence)]


def _placed(check: FunctionCheck, ops: list[RecordedOp]) -> FunctionCheck:
    """The check with the module in which the Function was met."""
    for op in ops:
        if op.kind == "function" and op.name == check.name:
            return dataclasses.replace(check, location=dataclasses.replace(check.location, module=op.module))
    return check


def _frozen(op: RecordedOp, flow: Flow | None) -> Op:
    return Op(
        index=op.index,
        location=op.location,
        nodes=tuple(node.name() for node in op.nodes),
        shape=_shape(op.outputs),
        in_shape=_shape(op.inputs),
        live_in=op.live_in,
        live_out=op.live_out,
        carries=op.carries,
        parents=op.parents,
        kind=op.kind,
        grad_mode=op.grad_mode,
        flow=flow,
    )


def _shape(tensors: tuple[Tensor, ...]) -> tuple[int, ...] | None:
    return tuple(tensors[0].shape) if tensors else None
