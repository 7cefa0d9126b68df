"""Where the gradient stops: cuts and ops that kill it, found by walking back from the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from maskaudit.trace.calls import ESCAPES
from maskaudit.trace.estimators import Estimator, rejoined, stairs
from maskaudit.trace.flow import gradient_flow
from maskaudit.trace.observe import Observer
from maskaudit.trace.passes import Movement
from maskaudit.trace.records import Cut, Flow, FunctionCheck, GradientHealth
from maskaudit.trace.seen import RecordedOp
from maskaudit.trace.vocabulary import HARD, KILLS, MASKS_IN_SERIES, SOFTMAX, STRUCTURAL, ZERO_SHARE


@dataclass
class Pass:
    """What the search looks at.

    Attributes:
        observer: the recorded pass, graph alive.
        raw: the model's output (N, K).
        scores: the target's scores (N, K).
        y: labels (N,).
        movement: which ops move with the input, and how far the argument of periodic ones does.
        health: the gradient as a whole.
        functions: checks of custom Functions, by class name.
        flows: gradient flow of the margin, by index of the op; empty where the output is not connected.
        flat: share of points where the derivative of cross-entropy with respect to the scores is exactly zero.
    """

    observer: Observer
    raw: Tensor
    scores: Tensor
    y: Tensor
    movement: Movement
    health: GradientHealth
    functions: dict[str, FunctionCheck]
    flows: dict[int, Flow]
    flat: float

    @property
    def suspicious(self) -> bool:
        """Whether the gradient as a whole is unhealthy."""
        return self.health.poor


@dataclass(frozen=True)
class _Behind:
    """Gradient flow from the inputs of an op on, and whether any of it reaches the model's input."""

    flows: dict[int, Flow]
    reached: bool


class GradientWalk:
    """Follows the gradient back from the output, and past whatever stops it."""

    def __init__(self, evidence: Pass) -> None:
        self.e = evidence
        self.ops = evidence.observer.ops
        self.n = len(evidence.y)
        self.flows: dict[int, Flow] = {}
        self.cuts: list[Cut] = []
        self.killers: list[RecordedOp] = []
        self.alive = evidence.observer.live(evidence.raw)
        self.parted: list[tuple[RecordedOp, RecordedOp]] = []  # (where it is cut, where the data come back)
        self.estimators: list[Estimator] = []  # where data without a gradient take up that of what they are added to
        self._walked: dict[int, _Behind] = {}
        self.ancestors = self.ancestors_of(evidence.observer.maker(evidence.raw))

    # --- walking ----------------------------------------------------------------------------------

    def walk(self) -> None:
        """Trace the gradient from the output; where it stops, go on from the input of what stopped it."""
        self._find_cuts()
        self._add_failing()
        stopped = [*([] if self.alive else [cut for cut, _ in self.parted]), *self.killers]
        found = [self.e.flows, *(self._behind(op).flows for op in stopped)]
        for _ in range(MASKS_IN_SERIES):
            fresh: dict[int, Flow] = {}
            for flows in found:
                unseen = {i: f for i, f in flows.items() if i not in self.flows or self.flows[i].points == 0}
                fresh = {**unseen, **fresh}
            self.flows.update(fresh)
            killers = [self.ops[i] for i, f in fresh.items() if f.points and self._kills(self.ops[i], f)]
            self.killers += killers
            killers += self._spoilers(fresh) + self._add_failing()
            if not killers:
                return
            found = [self._behind(op).flows for op in killers]

    def _behind(self, op: RecordedOp) -> _Behind:
        """Walk on from the inputs of an op at which the gradient stops."""
        if op.index not in self._walked:
            flows: dict[int, Flow] = {}
            reached = False
            for tensor in self._live_inputs(op):
                further, gradient = gradient_flow(self.e.observer, [(tensor, _noise(tensor))], self.n)
                flows = {**further, **flows}
                reached = reached or (gradient is not None and bool(gradient.any()))
            self._walked[op.index] = _Behind(flows, reached)
        return self._walked[op.index]

    def _kills(self, op: RecordedOp, flow: Flow) -> bool:
        if op.name in STRUCTURAL or op in self.killers:
            return False
        limit = ZERO_SHARE if op.name in SOFTMAX and self.decides(op) else KILLS
        if flow.zero_share <= limit:
            return False
        return self._moves(op) if op.name in HARD or self.decides(op) else op.index in self.e.movement.changes

    def _moves(self, op: RecordedOp) -> bool:
        """Whether an op reads data that move with the input, if its own result happens to stay on these points."""
        return self._behind(op).reached or self.given_moving(op)  # what has a gradient moves

    def given_moving(self, op: RecordedOp) -> bool:
        """The same, as a pass with moved inputs shows it."""
        return not self.e.movement.changes.isdisjoint((op.index, *op.parents))

    def _spoilers(self, flows: Mapping[int, Flow]) -> list[RecordedOp]:
        """The op next to the output that makes a gradient infinite or undefined at most points; all before it do."""
        spoilt = [i for i, f in flows.items() if f.nonfinite_share > KILLS]
        found = [self.ops[i] for i in spoilt if i == max(spoilt) and self.ops[i] not in self.killers]
        self.killers += found
        return found

    def _add_failing(self) -> list[RecordedOp]:
        """Take in the ops on the way to the output in which a backward pass is known to raise; the new ones."""
        fresh = [
            op for op in self.ops
            if op.index in self.ancestors and op not in self.killers
            and (op.index in self.e.observer.failed or self.underived(op))
        ]  # fmt: skip
        self.killers += fresh
        self.flows.update({op.index: Flow(self.n, 0.0, 0.0, 1.0, 0.0, None) for op in fresh})
        return fresh

    @staticmethod
    def underived(op: RecordedOp) -> bool:
        """Whether torch has no derivative of an op."""
        return any("NotImplemented" in node.name() for node in op.nodes)

    def _find_cuts(self) -> None:
        for op in self.ops:
            if op.live_out or not op.carries or op.index not in self.ancestors:
                continue
            if op.kind == "entry" or (op.kind == "torch" and not op.parents and not op.live_in):
                escape = self._escape_before(op)
                if escape is None:
                    self._add_cut(op, op, "the data come without gradient from where nothing was seen")
                else:
                    self._add_cut(escape, op, f"the data leave torch in {escape.name} and come back without gradient")
            elif op.live_in and op.kind == "torch":
                reason = f"torch refuses {op.name} where a gradient is asked for" if op.refused else ""
                self._add_cut(op, op, reason or f"{op.name} passes the data on and drops the gradient")
            elif op.kind == "torch":
                for source in (self.ops[p] for p in op.parents if self.ops[p].live_in and self.ops[p].live_out):
                    # of its outputs, one that has no gradient is used
                    self._add_cut(source, source, f"{source.name} answers with indices, which have no gradient", op)

    def _add_cut(self, op: RecordedOp, back: RecordedOp, sentence: str, dead: RecordedOp | None = None) -> None:
        """Add the cut at `op`, whose data come back at `back`, if `dead`, the first op off the graph, hands on any.

        A straight-through estimator is such a cut too, but parts nothing.
        """
        dead = back if dead is None else dead
        location = op.no_grad if op.no_grad is not None and op.kind == "torch" else op.location
        sums = rejoined(self, dead) if self.alive else []
        known = {one.total.index for one in self.estimators}
        self.estimators += [one for one in sums if one.total.index not in known]
        if any(cut.location == location for cut in self.cuts) or not (sums or self._hands_on(dead)):
            return
        self.cuts.append(Cut(location, op.index, self.alive, sentence))
        if not sums or not all(one.honest or one.foreign for one in sums):
            self.parted.append((op, back))

    def _hands_on(self, op: RecordedOp) -> bool:
        """Whether an op off the graph makes data that move with the input."""
        return op.index in self.e.movement.changes if self.alive else op.live_in or self._moves(op)

    def _escape_before(self, entry: RecordedOp) -> RecordedOp | None:
        earlier = [op for op in self.ops[: entry.index] if op.kind == "escape" and op.name in ESCAPES]
        here = [op for op in earlier if op.module == entry.module]
        found = here or earlier
        return found[-1] if found else None

    def ancestors_of(self, start: int | None) -> set[int]:
        """`start` and everything its data come from, as far as torch saw it."""
        found: set[int] = set()
        stack = [start] if start is not None and start >= 0 else []
        while stack:
            index = stack.pop()
            if index not in found:
                found.add(index)
                stack.extend(self.ops[index].parents)
        return found

    def _live_inputs(self, op: RecordedOp) -> list[Tensor]:
        """Inputs of `op` that are on the graph, or those of what made its inputs."""
        observer = self.e.observer
        pending, seen = [op], set()
        while pending:
            current = pending.pop()
            live = [t for t in current.inputs if observer.live(t) and t is not observer.leaf]
            if live:
                return live
            if not current.inputs and current.nodes:
                parents = [t for p in current.parents for t in self.ops[p].outputs if observer.live(t)]
                if parents:
                    return parents
            seen.add(current.index)
            pending += [self.ops[p] for p in current.parents if p not in seen]
        return []

    @cached_property
    def stairs(self) -> frozenset[int]:
        """See `estimators.stairs`."""
        return stairs(self)

    def reads_input(self, op: RecordedOp) -> bool:
        """Whether an op reads what the model was given."""
        observer = self.e.observer
        return any(observer.live(t) and observer.maker(t) in (None, -1) for t in op.inputs)

    def all_through(self, tensor: Tensor) -> bool:
        """Whether data of the input reach the output through the tensor alone."""
        observer = self.e.observer
        maker, start = observer.maker(tensor), observer.maker(self.e.raw)
        pending, seen = [] if start is None or start < 0 else [start], {maker}
        while pending:
            index = pending.pop()
            if index in seen:
                continue
            seen.add(index)
            current = self.ops[index]
            if self.reads_input(current):
                return False
            pending += current.parents
        return True

    def decides(self, op: RecordedOp) -> bool:
        """Whether the op's first input is (N, K) and already holds the model's decision, up to ties of the output."""
        if not op.inputs or op.index not in self.ancestors:
            return False
        before = op.inputs[0].detach()
        if before.shape != self.e.raw.shape or before.dim() != 2 or not before.is_floating_point():
            return False
        raw = self.e.raw.detach()
        return torch.equal(raw.gather(1, before.argmax(dim=1, keepdim=True)).squeeze(1), raw.amax(dim=1))


def _noise(tensor: Tensor) -> Tensor:
    """A fixed random cotangent."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator).to(tensor)
