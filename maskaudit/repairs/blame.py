"""Who hides the gradient, tried where a trace alone cannot tell: cuts parallel to a path that stays live.

A straight-through estimator detaches what its gradient is not to follow, and statistics are often taken off the graph:
these are no faults. A detached network whose output is joined by a weak live term is one. A gradient comes out of both.
So each cut is repaired, and the gradient compared with central differences again: where it follows the model now, the
cut was to blame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from maskaudit.repairs.propose import propose
from maskaudit.repairs.target import repaired_target
from maskaudit.target import Target
from maskaudit.target.preserve import preserved_random_state, seed_generators
from maskaudit.trace.behaviour import zero_share
from maskaudit.trace.culprits import ranked
from maskaudit.trace.differences import Differences
from maskaudit.trace.health import deciding_pair
from maskaudit.trace.model import FEW_POINTS, trace_model, usual_radius
from maskaudit.trace.records import Culprit, Trace
from maskaudit.verdict.limits import BLAME_GAIN, TRACE_AGREEMENT, ZERO_GRADIENT_SHARE

#: Cuts that are tried, in the order of the forward pass, and random directions per point that they are tried along.
MOST_CUTS, DIRECTIONS = 4, 2
_PROOF = "A live path parallel to it stays, but only with the cut repaired does the gradient follow the model."


def traced(target: Target, x: Tensor, y: Tensor, *, eps: float | None = None) -> Trace:
    """`trace_model`, and among the culprits the cuts parallel to a live path that are to blame.

    Nothing is tried on models whose answers are random or depend on the batch.

    Args:
        target: the open target.
        x: inputs (N, …) in bounds; y: labels (N,); eps: as for `trace_model`.

    Raises:
        ModelError: when the model raises or returns something that is not class scores.
    """
    eps = usual_radius(target, x) if eps is None else eps
    trace = trace_model(target, x, y, eps=eps)
    cuts = trace.parallel[:MOST_CUTS]
    if not cuts or trace.randomness is not None or trace.batch_dependent is not None:
        return trace
    few, labels = x[:FEW_POINTS].detach(), y[:FEW_POINTS]

    def to_blame(tried: Sequence[Culprit]) -> bool:
        return _follows(target, dataclasses.replace(trace, culprits=tuple(tried)), few, labels, eps)

    with preserved_random_state():
        guilty = [cut for cut in cuts if to_blame([cut])]
        if not guilty and len(cuts) > 1 and to_blame(cuts):
            guilty = list(cuts)
    named = [dataclasses.replace(cut, sentence=f"{cut.sentence} {_PROOF}") for cut in guilty]
    return dataclasses.replace(trace, culprits=tuple(ranked([*trace.culprits, *named])))


def _follows(target: Target, trace: Trace, x: Tensor, y: Tensor, eps: float) -> bool:
    """Whether the gradient of the margin follows the model once the culprits of the trace are repaired."""
    seed_generators(target.seed)
    with repaired_target(target, propose(trace)) as repaired:
        found = repaired.value_and_grad(x, lambda scores, rows: target.margin(scores, y[rows]))
    if not found.connected or zero_share(found.grad) > ZERO_GRADIENT_SHARE:
        return False
    differences, pair = Differences(eps), deciding_pair(target, found.scores, y)
    differences.extend(target, x, pair, found.grad, DIRECTIONS, differences.scales, together=True)
    now = [scale.correlation for scale in differences.scales]
    # nothing agrees with nothing: what was measured then means little
    vanished = trace.health.zero_share > ZERO_GRADIENT_SHARE
    before = [0.0 if vanished else value for _, value in trace.health.agreement]
    # over the larger steps a bent surface leaves its gradient behind; over the smallest only a wrong one disagrees
    return improved(min(before), min(now)) or improved(before[-1], now[-1])


def improved(before: float, now: float) -> bool:
    """Whether an agreement that was too low is high enough, and not by chance."""
    return before < TRACE_AGREEMENT and now >= max(TRACE_AGREEMENT, before + BLAME_GAIN)
