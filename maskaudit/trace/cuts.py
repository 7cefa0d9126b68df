"""Where data pass on and the gradient does not: cuts, and the straight-through estimators among them."""

from __future__ import annotations

from maskaudit.trace.calls import ESCAPES
from maskaudit.trace.estimators import Estimator, Staircases
from maskaudit.trace.op_notes import RecordedOp
from maskaudit.trace.opgraph import OpGraph
from maskaudit.trace.records import Cut


class Cuts:
    """The cuts on the way to the output.

    Attributes:
        found: all of them.
        parted: those that are no estimators: (where it is cut, where the data come back).
        estimators: where data without a gradient take up that of what they are added to.
    """

    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph
        self.found: list[Cut] = []
        self.parted: list[tuple[RecordedOp, RecordedOp]] = []
        self.estimators: list[Estimator] = []
        self._staircases = Staircases(graph)
        for op in graph.ops:
            if op.carries and not op.live_out and op.index in graph.way:
                self._look(op)

    def sentence(self, op: RecordedOp) -> str:
        """What the cut at `op` does."""
        return next((cut.sentence for cut in self.found if cut.op == op.index), f"{op.name} drops the gradient")

    def _look(self, op: RecordedOp) -> None:
        """Add the cut by which the data of `op` are off the graph, if it is not further back."""
        ops = self.graph.ops
        if op.kind == "entry" or (op.kind == "torch" and not op.parents and not op.live_in):
            escape = self._escape_before(op)
            if escape is None:
                self._add(op, op, "the data come without gradient from where nothing was seen")
            else:
                self._add(escape, op, f"the data leave torch in {escape.name} and come back without gradient")
        elif op.live_in and op.kind == "torch":
            refused = f"torch refuses {op.name} where a gradient is asked for" if op.refused else ""
            self._add(op, op, refused or f"{op.name} passes the data on and drops the gradient")
        elif op.kind == "torch":
            for source in (ops[p] for p in op.parents if ops[p].live_in and ops[p].live_out):
                # of its outputs, one that has no gradient is used
                self._add(source, source, f"{source.name} answers with indices, which have no gradient", op)

    def _add(self, op: RecordedOp, back: RecordedOp, sentence: str, dead: RecordedOp | None = None) -> None:
        """Add the cut at `op`, whose data come back at `back`, if `dead`, the first op off the graph, hands on any.

        A straight-through estimator is such a cut too, but parts nothing.
        """
        dead = back if dead is None else dead
        location = op.no_grad if op.no_grad is not None and op.kind == "torch" else op.location
        sums = self._staircases.rejoined(dead) if self.graph.alive else []
        known = {one.total.index for one in self.estimators}
        self.estimators += [one for one in sums if one.total.index not in known]
        if any(cut.location == location for cut in self.found) or not (sums or self._hands_on(dead)):
            return
        self.found.append(Cut(location, op.index, self.graph.alive, sentence))
        if not sums or not all(one.honest or one.foreign for one in sums):
            self.parted.append((op, back))

    def _hands_on(self, op: RecordedOp) -> bool:
        """Whether an op off the graph makes data that move with the input."""
        if self.graph.alive:
            return op.index in self.graph.movement.changes
        return op.live_in or self.graph.moves(op)

    def _escape_before(self, entry: RecordedOp) -> RecordedOp | None:
        earlier = [op for op in self.graph.ops[: entry.index] if op.kind == "escape" and op.name in ESCAPES]
        here = [op for op in earlier if op.module == entry.module]
        found = here or earlier
        return found[-1] if found else None
