"""The gradient, followed back from the output and past whatever stops it."""

from __future__ import annotations

from collections.abc import Mapping

from maskaudit.trace.cuts import Cuts
from maskaudit.trace.op_notes import RecordedOp
from maskaudit.trace.opgraph import OpGraph, underived
from maskaudit.trace.records import Flow
from maskaudit.trace.vocabulary import HARD, SOFTMAX, STRUCTURAL
from maskaudit.verdict.limits import KILLED_SHARE, ZERO_GRADIENT_SHARE

#: Rounds of "walk on from the input of what killed the gradient": masks in series.
MASKS_IN_SERIES = 6


class Walk:
    """Where it comes through, and what stops it: where it stops, the walk goes on from the input of what stopped it.

    Attributes:
        cuts: where it stops since the data are off the graph.
        killers: ops that kill it, spoil it, or in which a backward pass raises.
        flows: gradient flow by index of the op, behind what stops the gradient as well.
    """

    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph
        self.flows: dict[int, Flow] = {}
        self.killers: list[RecordedOp] = []
        self.cuts = Cuts(graph)
        self._add_failing()
        parted = [] if graph.alive else [cut for cut, _ in self.cuts.parted]
        found = [graph.flows, *(graph.behind(op).flows for op in (*parted, *self.killers))]
        for _ in range(MASKS_IN_SERIES):
            stopped = self._step(found)
            if not stopped:
                return
            found = [graph.behind(op).flows for op in stopped]

    def _step(self, found: list[dict[int, Flow]]) -> list[RecordedOp]:
        """Take in what was found; the ops at which it stops."""
        fresh: dict[int, Flow] = {}
        for flows in found:
            unseen = {i: f for i, f in flows.items() if i not in self.flows or self.flows[i].points == 0}
            fresh = {**unseen, **fresh}
        self.flows.update(fresh)
        killers = [op for i, f in fresh.items() if f.points and self._kills(op := self.graph.ops[i], f)]
        self.killers += killers
        return killers + self._spoilers(fresh) + self._add_failing()

    def _kills(self, op: RecordedOp, flow: Flow) -> bool:
        if op.name in STRUCTURAL or op in self.killers:
            return False
        limit = ZERO_GRADIENT_SHARE if op.name in SOFTMAX and self.graph.decides(op) else KILLED_SHARE
        if flow.zero_share <= limit:
            return False
        if op.name in HARD or self.graph.decides(op):
            return self.graph.moves(op)
        return op.index in self.graph.movement.changes

    def _spoilers(self, flows: Mapping[int, Flow]) -> list[RecordedOp]:
        """The op next to the output that makes a gradient infinite or undefined at most points; all before it do."""
        last = max((i for i, f in flows.items() if f.nonfinite_share > KILLED_SHARE), default=None)
        found = [] if last is None or self.graph.ops[last] in self.killers else [self.graph.ops[last]]
        self.killers += found
        return found

    def _add_failing(self) -> list[RecordedOp]:
        """Take in the ops on the way to the output in which a backward pass is known to raise; the new ones."""
        fresh = [
            op for op in self.graph.ops
            if op.index in self.graph.way and op not in self.killers
            and (op.index in self.graph.observer.failed or underived(op))
        ]  # fmt: skip
        self.killers += fresh
        self.flows.update({op.index: Flow(len(self.graph.observer.leaf), 0.0, 0.0, 1.0, 0.0, None) for op in fresh})
        return fresh
