"""From what was recorded to suspects: which op stops the gradient although it passes the data on.

Nothing is suspected where the input gradient as a whole is healthy (it agrees
with central differences and vanishes nowhere), whatever single ops look like:
a detach whose gradient revives downstream, dead units and statistics that are
taken off the graph are no faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from maskaudit.errors import GradientError
from maskaudit.results import Confidence, Location
from maskaudit.settings.plan import Remedy
from maskaudit.target import differentiate
from maskaudit.trace.estimators import of_one_piece
from maskaudit.trace.op_notes import RecordedOp
from maskaudit.trace.opgraph import OpGraph
from maskaudit.trace.records import Culprit, Cut, Flow, FunctionCheck, GradientHealth
from maskaudit.trace.suspect_ops import cut_culprit, end_culprit, gap_scale, hooks, optimisation, spread, stops
from maskaudit.trace.vocabulary import (
    COMPARISONS,
    GATES,
    RANDOM,
    RELU,
    SATURATING,
    SCALING,
    SMOOTH,
    SOFTMAX,
    STRUCTURAL,
)
from maskaudit.trace.walk import Walk
from maskaudit.verdict.limits import (
    BLOCKED_ALONE_SHARE,
    BLOCKED_RELU_SHARE,
    CLOSE_SCORES,
    FLAT_SHARE,
    SURELY_SATURATED_SHARE,
    ZERO_GRADIENT_SHARE,
)


@dataclass
class Clues:
    """What the search looks at.

    Attributes:
        graph: the ops of the recorded pass.
        scores: the target's scores (N, K).
        y: labels (N,).
        health: the gradient as a whole.
        functions: checks of custom Functions, by class name.
        flat: share of points where the derivative of cross-entropy with respect to the scores is exactly zero.
    """

    graph: OpGraph
    scores: Tensor
    y: Tensor
    health: GradientHealth
    functions: Mapping[str, FunctionCheck]
    flat: float


@dataclass
class Suspects:
    """Result of the search.

    Attributes:
        dead_way: the ops behind cuts, where the output is not connected to the input.
        parallel: cuts parallel to a live path, of a model whose gradient is unhealthy; see `Trace.parallel`.
        estimators: see `Trace.estimators`.
    """

    culprits: list[Culprit]
    parallel: list[Culprit]
    estimators: list[Location]
    cuts: list[Cut]
    flows: dict[int, Flow]
    dead_way: frozenset[int]


def find_culprits(e: Clues) -> Suspects:
    """Suspects, the most certain first; empty for a healthy gradient."""
    graph, poor = e.graph, e.health.poor
    walk = Walk(graph)
    estimators = _straight_through(e, walk)
    culprits = _of_poor_gradient(e, walk, estimators) if poor else _saturation(walk, SMOOTH, BLOCKED_ALONE_SHARE)
    culprits += _logit_scale(e, culprits)
    if not culprits:
        culprits += _bent_output(e)
    parallel = [cut_culprit(walk.cuts, *cut) for cut in walk.cuts.parted] if graph.alive and poor else []
    dead_way = frozenset() if graph.alive else _dead_way(graph)
    return Suspects(ranked(culprits), parallel, estimators, walk.cuts.found, walk.flows, dead_way)


#: Of equally certain suspects, those that act on any input come before those that depend on how far units are driven.
_ORDER = (
    "test-time-optimisation", "failing-backward", "cut", "shattered", "lying-backward", "output-hides-loss",
    "jagged-surface", "logit-scale", "saturation", "imbalanced-margin", "stochastic",
)  # fmt: skip


def ranked(culprits: list[Culprit]) -> list[Culprit]:
    """The culprits, the most certain first."""
    certain = {"high": 0, "medium": 1, "low": 2}
    return sorted(
        culprits,
        key=lambda c: (certain[c.confidence], _ORDER.index(c.mechanism), c.op if c.op >= 0 else 1 << 30),
    )


def behind_cuts(e: Clues, found: list[Culprit]) -> list[Culprit]:
    """Suspects on the way from a cut to the output, from a pass in which the cut tensors were made leaves."""
    named = {culprit.location for culprit in found}
    suspects = stops(Walk(e.graph), e.functions, e.health.zero_share)
    return [culprit for culprit in suspects if culprit.location not in named]


def _of_poor_gradient(e: Clues, walk: Walk, estimators: list[Location]) -> list[Culprit]:
    """Cuts, killers, lying backwards, ripples, hooks and saturation; gates only if there is nothing else."""
    graph, cuts = walk.graph, walk.cuts
    found = [] if graph.alive else [end_culprit(cuts, *cut) for cut in cuts.parted]
    found += stops(walk, e.functions, e.health.zero_share) + hooks(graph) + optimisation(graph)
    named = {c.op for c in found}
    # estimators alone may explain that the gradient does not follow the model
    honest = bool(estimators) and not cuts.parted and all(one.honest for one in cuts.estimators)
    explained = honest and graph.alive and e.health.zero_share <= ZERO_GRADIENT_SHARE
    names, limit = (SMOOTH, BLOCKED_ALONE_SHARE) if explained else (SATURATING | RELU, FLAT_SHARE)
    found += [c for c in _saturation(walk, names, limit) if c.op not in named]
    if not found and not explained:
        found += _gates(graph)
    if not found and not e.health.connected:
        found.append(_disconnected(graph))
    return found


def _straight_through(e: Clues, walk: Walk) -> list[Location]:
    """Where straight-through estimators take up the gradient of what goes along with them."""
    whole = of_one_piece(e.functions, walk.graph.ops)
    sums = [one.total.location for one in walk.cuts.estimators if one.honest]
    return list(dict.fromkeys([*sums, *(op.location for op in whole if not _shut(walk, op))]))


def _shut(walk: Walk, op: RecordedOp) -> bool:
    """Whether a custom Function lets next to nothing through at most of its units."""
    flow = walk.flows.get(op.index)
    return op.kind == "function" and flow is not None and (flow.blocked_share or 0.0) > BLOCKED_ALONE_SHARE


def _dead_way(graph: OpGraph) -> frozenset[int]:
    """Ops that carry the data from a cut on towards the output."""
    dead = [op for op in graph.ops if op.index in graph.way and not op.live_out and op.carries]
    return frozenset(op.index for op in dead if graph.movement.given(op))


def _disconnected(graph: OpGraph) -> Culprit:
    place, failure = graph.observer.script_cut, graph.observer.failure
    if failure:
        return Culprit("failing-backward", Location("", "backward"), "high", f"{failure.rstrip('.')}.")
    if place is None:
        return Culprit("cut", Location("", "output"), "medium", "The output is not connected to the input.")
    return Culprit("cut", place, "high", f"The gradient is cut: {place.op} passes the data on and drops the gradient.")


def _saturation(walk: Walk, names: frozenset[str], limit: float) -> list[Culprit]:
    """Ops of the given names that block more than `limit` of their units (`BLOCKED_RELU_SHARE` for rectifiers)."""
    found = []
    for op in walk.graph.ops:
        flow = walk.flows.get(op.index)
        if flow is None or flow.blocked_share is None or (op.name not in names and not _shut(walk, op)):
            continue
        if op.name in SOFTMAX and walk.graph.decides(op):  # how far scores are apart is a matter of their scale
            continue
        limit_here = BLOCKED_RELU_SHARE if op.name in RELU else limit
        if flow.blocked_share > limit_here and op.index in walk.graph.movement.changes:
            surely = flow.blocked_share > SURELY_SATURATED_SHARE and op.name not in RELU
            confidence: Confidence = "high" if surely else "medium"
            sentence = f"{op.name} lets less than a hundredth through at {flow.blocked_share:.0%} of its units."
            remedy: Remedy = "function-forward" if op.kind == "function" else "soften"
            found.append(Culprit("saturation", op.location, confidence, sentence, remedy, op.index, spread(op)))
    return found


def _gates(graph: OpGraph) -> list[Culprit]:
    """Ops that apply a mask computed from the data."""
    found = []
    for op in graph.ops:
        if op.name not in GATES or not (op.live_in and op.live_out):
            continue
        dead = [p for p in op.parents if not graph.ops[p].live_out and graph.ops[p].carries]
        before = {graph.ops[a].name for p in dead for a in graph.ancestors(p)}
        if before & COMPARISONS and not before & RANDOM and not graph.movement.changes.isdisjoint(dead):
            sentence = f"{op.name} applies a mask computed from the data: the surface jumps when the mask changes."
            found.append(Culprit("jagged-surface", op.location, "medium", sentence, "gate-identity", op.index))
    return found


def _logit_scale(e: Clues, already: list[Culprit]) -> list[Culprit]:
    """Cross-entropy flat in float32: its derivative with respect to the scores is exactly zero."""
    if any(c.remedy == "tap" for c in already):
        return []
    flat = e.flat
    if e.health.connected and e.health.zero_share <= ZERO_GRADIENT_SHARE:
        flat = max(flat, e.health.ce_zero_share)
    if flat <= ZERO_GRADIENT_SHARE:
        return []
    scaling = _scaling(e.graph)
    location, index = (Location("", "output"), -1) if scaling is None else (scaling.location, scaling.index)
    sentence = f"The gradient of cross-entropy is exactly zero on {flat:.0%} of points: the logits are too large."
    return [Culprit("logit-scale", location, "high", sentence, "rescale", index, gap_scale(e.scores.detach()))]


def shrinks_scores(graph: OpGraph) -> Location | None:
    """The last op that brings scores so close together that cross-entropy leads to all other classes alike, if any."""
    scaling = _scaling(graph)
    if scaling is None:
        return None
    scores = (scaling.inputs[0].detach(), scaling.outputs[0].detach())
    before, after = (float((each.amax(dim=1) - each.amin(dim=1)).median()) for each in scores)
    return scaling.location if after < min(before / 2, CLOSE_SCORES) else None


def _scaling(graph: OpGraph) -> RecordedOp | None:
    """The last op that scales what decides already."""
    return next((op for op in reversed(graph.ops) if op.name in SCALING and graph.decides(op)), None)


def _bent_output(e: Clues) -> list[Culprit]:
    """Scores that pass a function which reverses the slope of the loss and keeps the decision."""
    graph, scores = e.graph, e.scores
    deciding = [
        op for op in graph.ops
        if op.kind == "torch" and op.live_in and op.live_out and graph.decides(op) and graph.all_through(op.inputs[0])
    ]  # fmt: skip
    if not scores.requires_grad or not deciding:
        return []
    before = deciding[0].inputs[0]
    if not before.requires_grad:
        return []
    loss = F.cross_entropy(scores, e.y, reduction="sum")
    try:
        (slope,) = differentiate(loss, (before,), retain_graph=True)
    except GradientError:
        return []
    if slope is None:
        return []
    plain = before.detach().float().softmax(dim=1) - F.one_hot(e.y, before.shape[1])
    against = float((F.cosine_similarity(slope.float(), plain, dim=1) < 0).double().mean())
    bends = [op for op in deciding if op.name not in SOFTMAX | SCALING | STRUCTURAL]
    if against <= ZERO_GRADIENT_SHARE or not bends:
        return []
    sentence = (
        f"What follows the scores reverses the slope of cross-entropy on {against:.0%} of points, "
        "while the decision stays."
    )
    scale = gap_scale(bends[0].inputs[0].detach())
    return [Culprit("output-hides-loss", bends[0].location, "high", sentence, "tap", bends[0].index, scale)]
