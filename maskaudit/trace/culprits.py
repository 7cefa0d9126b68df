"""From what was recorded to suspects: which op stops the gradient although it passes the data on.

Nothing is suspected where the input gradient as a whole is healthy (it agrees
with central differences and vanishes nowhere), whatever single ops look like:
a detach whose gradient revives downstream, dead units and statistics that are
taken off the graph are no faults.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch.nn import functional as F

from maskaudit.errors import GradientError
from maskaudit.results import Location
from maskaudit.target import differentiate
from maskaudit.trace.estimators import of_one_piece
from maskaudit.trace.records import Confidence, Culprit, Cut, Flow, Remedy
from maskaudit.trace.seen import RecordedOp
from maskaudit.trace.stops import Stops, gap_scale
from maskaudit.trace.vocabulary import (
    ALONE,
    COMPARISONS,
    DEAD_RELU,
    GATES,
    RANDOM,
    RELU,
    SATURATED,
    SATURATING,
    SCALING,
    SMOOTH,
    SOFTMAX,
    STRUCTURAL,
    ZERO_SHARE,
)
from maskaudit.trace.walk import Pass


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


def find_culprits(evidence: Pass) -> Suspects:
    """Suspects, the most certain first; empty for a healthy gradient."""
    search = _Search(evidence)
    search.walk()
    culprits = search.gradient_culprits() if evidence.suspicious else search.saturation(SMOOTH, ALONE)
    culprits += search.logit_scale(culprits)
    if not culprits:
        culprits += search.bent_output()
    culprits = ranked(culprits)
    dead_way = frozenset() if search.alive else search.dead_way()
    parallel = [search.cut_culprit(*cut) for cut in search.parted] if search.alive and evidence.suspicious else []
    return Suspects(culprits, parallel, search.straight_through, search.cuts, search.flows, dead_way)


#: Of equally certain suspects, those that act on any input come before those that depend on how far units are driven.
_ORDER = (
    "test-time-optimisation", "failing-backward", "cut", "shattered", "lying-backward", "output-hides-loss",
    "jagged-surface", "logit-scale", "saturation", "imbalanced-margin", "stochastic",
)  # fmt: skip


def ranked(culprits: list[Culprit]) -> list[Culprit]:
    """The most certain first."""
    certain = {"high": 0, "medium": 1, "low": 2}
    return sorted(
        culprits,
        key=lambda c: (certain[c.confidence], _ORDER.index(c.mechanism), c.op if c.op >= 0 else 1 << 30),
    )


def behind_cuts(evidence: Pass, found: list[Culprit]) -> list[Culprit]:
    """Suspects on the way from a cut to the output, from a pass in which the cut tensors were made leaves."""
    search = _Search(evidence)
    search.walk()
    named = {culprit.location for culprit in found}
    return [culprit for culprit in search.stops() if culprit.location not in named]


class _Search(Stops):
    """Adds what only the whole tells: saturation, gates and what follows the scores."""

    def gradient_culprits(self) -> list[Culprit]:
        """Cuts, killers, lying backwards, ripples, hooks and saturation; gates only if there is nothing else."""
        found = [] if self.alive else [self.end_culprit(op, back) for op, back in self.parted]
        found += self.stops() + self.hooks() + self.optimisation()
        named = {c.op for c in found}
        explained = self.explained()
        names, limit = (SMOOTH, ALONE) if explained else (SATURATING | RELU, SATURATED)
        found += [c for c in self.saturation(names, limit) if c.op not in named]
        if not found and not explained:
            found += self._gates()
        if not found and not self.e.health.connected:
            found.append(self._disconnected())
        return found

    @cached_property
    def straight_through(self) -> list[Location]:
        """Where straight-through estimators take up the gradient of what goes along with them."""
        whole = of_one_piece(self.e.functions, self.ops)
        sums = [one.total.location for one in self.estimators if one.honest]
        return list(dict.fromkeys([*sums, *(op.location for op in whole if not self._shut(op))]))

    def _shut(self, op: RecordedOp) -> bool:
        """Whether a custom Function lets next to nothing through at most of its units."""
        flow = self.flows.get(op.index)
        return op.kind == "function" and flow is not None and (flow.blocked_share or 0.0) > ALONE

    def explained(self) -> bool:
        """Whether estimators alone explain that the gradient does not follow the model."""
        harmless = bool(self.straight_through) and not self.parted and all(one.honest for one in self.estimators)
        return harmless and self.alive and self.e.health.zero_share <= ZERO_SHARE

    def dead_way(self) -> frozenset[int]:
        """Ops that carry the data from a cut on towards the output."""
        return frozenset(
            op.index
            for op in self.ops
            if op.index in self.ancestors and not op.live_out and op.carries and self.given_moving(op)
        )

    def _disconnected(self) -> Culprit:
        place, failure = self.e.observer.script_cut, self.e.observer.failure
        if failure:
            return Culprit("failing-backward", Location("", "backward"), "high", f"{failure.rstrip('.')}.")
        if place is None:
            return Culprit("cut", Location("", "output"), "medium", "The output is not connected to the input.")
        return Culprit(
            "cut", place, "high", f"The gradient is cut: {place.op} passes the data on and drops the gradient."
        )

    def saturation(self, names: frozenset[str], limit: float) -> list[Culprit]:
        """Ops of the given names that block more than `limit` of their units (`DEAD_RELU` for rectifiers)."""
        found = []
        for op in self.ops:
            flow = self.flows.get(op.index)
            if flow is None or flow.blocked_share is None or (op.name not in names and not self._shut(op)):
                continue
            if op.name in SOFTMAX and self.decides(op):  # how far scores are apart is a matter of their scale
                continue
            if flow.blocked_share > (DEAD_RELU if op.name in RELU else limit) and op.index in self.e.movement.changes:
                confidence: Confidence = "high" if flow.blocked_share > 0.7 and op.name not in RELU else "medium"
                sentence = f"{op.name} lets less than a hundredth through at {flow.blocked_share:.0%} of its units."
                remedy: Remedy = "function-forward" if op.kind == "function" else "soften"
                found.append(Culprit("saturation", op.location, confidence, sentence, remedy, op.index,
                                     self.spread(op)))  # fmt: skip
        return found

    def _gates(self) -> list[Culprit]:
        found = []
        for op in self.ops:
            if op.name not in GATES or not (op.live_in and op.live_out):
                continue
            dead = [p for p in op.parents if not self.ops[p].live_out and self.ops[p].carries]
            before = {self.ops[a].name for p in dead for a in self.ancestors_of(p)}
            if before & COMPARISONS and not before & RANDOM and not self.e.movement.changes.isdisjoint(dead):
                sentence = f"{op.name} applies a mask computed from the data: the surface jumps when the mask changes."
                found.append(Culprit("jagged-surface", op.location, "medium", sentence, "gate-identity", op.index))
        return found

    def logit_scale(self, already: list[Culprit]) -> list[Culprit]:
        """Cross-entropy flat in float32: its derivative with respect to the scores is exactly zero."""
        if any(c.remedy == "tap" for c in already):
            return []
        flat = self.e.flat
        if self.e.health.connected and self.e.health.zero_share <= ZERO_SHARE:
            flat = max(flat, self.e.health.ce_zero_share)
        if flat <= ZERO_SHARE:
            return []
        scaling = [op for op in self.ops if op.index in self.ancestors and op.name in SCALING and self.decides(op)]
        where = scaling[-1] if scaling else None
        location = where.location if where is not None else Location("", "output")
        sentence = f"The gradient of cross-entropy is exactly zero on {flat:.0%} of points: the logits are too large."
        index = where.index if where is not None else -1
        return [Culprit("logit-scale", location, "high", sentence, "rescale", index, gap_scale(self.e.scores.detach()))]

    def bent_output(self) -> list[Culprit]:
        """Scores that pass a function which turns the slope of the loss round while it keeps the decision."""
        scores = self.e.scores
        deciding = [
            op for op in self.ops
            if op.kind == "torch" and op.live_in and op.live_out and self.decides(op) and self.all_through(op.inputs[0])
        ]  # fmt: skip
        if not scores.requires_grad or not deciding:
            return []
        before = deciding[0].inputs[0]
        if not before.requires_grad:
            return []
        loss = F.cross_entropy(scores, self.e.y, reduction="sum")
        try:
            (slope,) = differentiate(loss, (before,), retain_graph=True)
        except GradientError:
            return []
        if slope is None:
            return []
        plain = before.detach().float().softmax(dim=1) - F.one_hot(self.e.y, before.shape[1])
        against = float((F.cosine_similarity(slope.float(), plain, dim=1) < 0).double().mean())
        bends = [op for op in deciding if op.name not in SOFTMAX | SCALING | STRUCTURAL]
        if against <= ZERO_SHARE or not bends:
            return []
        sentence = (
            f"What follows the scores turns the slope of cross-entropy round on {against:.0%} of points, "
            "while the decision stays."
        )
        return [Culprit("output-hides-loss", bends[0].location, "high", sentence, "tap", bends[0].index,
                        gap_scale(bends[0].inputs[0].detach()))]  # fmt: skip
