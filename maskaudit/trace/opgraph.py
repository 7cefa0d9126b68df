"""The ops of one recorded pass as a graph: whose data each reads, who reads its own, what gradient comes through."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.trace.flow import gradient_flow
from maskaudit.trace.observe import Observer
from maskaudit.trace.op_notes import RecordedOp, has_memory
from maskaudit.trace.passes import Movement
from maskaudit.trace.records import Flow


@dataclass(frozen=True)
class Behind:
    """Gradient flow from the inputs of an op on, and whether any of it reaches the model's input."""

    flows: dict[int, Flow]
    reached: bool


class OpGraph:
    """What the searches for culprits ask about ops.

    Args:
        observer: the recorded pass, graph alive.
        raw: the model's output (N, K).
        flows: gradient flow of the margin, by index of the op; empty where the output is not connected.
        movement: which ops move with the input, and how far the argument of periodic ones does.

    Attributes:
        ops: in the order of the forward pass.
        output: index of the op that made the output; None if unknown.
        alive: whether the output is connected to the input in the autograd graph.
        way: `output` and everything its data come from, as far as torch saw it.
    """

    def __init__(self, observer: Observer, raw: Tensor, flows: dict[int, Flow], movement: Movement) -> None:
        self.observer, self.raw, self.flows, self.movement = observer, raw, flows, movement
        self.ops = observer.ops
        self.output = observer.maker(raw)
        self.alive = observer.live(raw)
        self.way = self.ancestors(self.output)
        self._behind: dict[int, Behind] = {}

    # --- data -------------------------------------------------------------------------------------

    def ancestors(self, start: int | None, *, without: int | None = None) -> set[int]:
        """`start` and everything its data come from other than through `without`, as far as torch saw it."""
        found: set[int] = set()
        stack = [start] if start is not None and start >= 0 else []
        while stack:
            index = stack.pop()
            if index not in found and index != without:
                found.add(index)
                stack.extend(self.ops[index].parents)
        return found

    def readers(self, op: RecordedOp) -> list[RecordedOp]:
        """The ops that read what `op` made."""
        return [later for later in self.ops[op.index + 1 :] if op.index in later.parents]

    def all_through(self, tensor: Tensor) -> bool:
        """Whether data of the input reach the output through the tensor alone."""
        past = self.ancestors(self.output, without=self.observer.maker(tensor))
        return not any(self.observer.reads_input(self.ops[index]) for index in past)

    def decides(self, op: RecordedOp) -> bool:
        """Whether the op's first input is (N, K) and already holds the model's decision, up to ties of the output.

        False where K is 1: a single output decides by a threshold, which lies elsewhere before each op.
        """
        if not op.inputs or op.index not in self.way:
            return False
        before = op.inputs[0].detach()
        if before.shape != self.raw.shape or before.dim() != 2 or before.shape[1] < 2 or not before.is_floating_point():
            return False
        raw = self.raw.detach()
        return torch.equal(raw.gather(1, before.argmax(dim=1, keepdim=True)).squeeze(1), raw.amax(dim=1))

    def weights(self, after: int, until: int) -> set[tuple[int, torch.Size]]:
        """What ops on data of the input, behind `after` up to `until`, read beside them; parts on their own."""
        found: set[tuple[int, torch.Size]] = set()
        seen: set[int] = set()
        stack = [op for op in self.ops[after + 1 : until + 1] if op.index in self._from_input]
        while stack:
            for tensor in stack.pop().inputs:
                index = self.observer.maker(tensor)
                if index in self._from_input or self.observer.live(tensor):
                    continue
                if index is not None and self.ops[index].kind != "entry" and not tensor._is_view():
                    if index not in seen:
                        seen.add(index)
                        stack.append(self.ops[index])
                elif has_memory(tensor) and tensor.numel() > 1:
                    found.add((tensor.data_ptr(), tensor.shape))
        return found

    @functools.cached_property
    def _from_input(self) -> set[int]:
        """Indices of the ops that anything of the input reaches within torch."""
        found: set[int] = set()
        for op in self.ops:
            if self.observer.reads_input(op) or not found.isdisjoint(op.parents):
                found.add(op.index)
        return found

    # --- gradient ---------------------------------------------------------------------------------

    def arrives(self, op: RecordedOp) -> bool:
        """Whether the gradient of the margin arrives at an op."""
        flow = self.flows.get(op.index)
        return flow is not None and flow.points > 0

    def live_inputs(self, op: RecordedOp) -> list[Tensor]:
        """Inputs of `op` that are on the autograd graph, or those of what made its inputs."""
        observer = self.observer
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

    def behind(self, op: RecordedOp) -> Behind:
        """The gradient from the inputs of an op at which it stops: one backward pass, made when first asked for."""
        if op.index not in self._behind:
            flows: dict[int, Flow] = {}
            reached = False
            for tensor in self.live_inputs(op):
                further, gradient = gradient_flow(self.observer, [(tensor, _noise(tensor))], len(self.observer.leaf))
                flows = {**further, **flows}
                reached = reached or (gradient is not None and bool(gradient.any()))
            self._behind[op.index] = Behind(flows, reached)
        return self._behind[op.index]

    def moves(self, op: RecordedOp) -> bool:
        """Whether an op reads data that move with the input, if its own result happens to stay on these points."""
        return self.behind(op).reached or self.movement.given(op)  # what has a gradient moves


def underived(op: RecordedOp) -> bool:
    """Whether torch has no derivative of an op."""
    return any("NotImplemented" in node.name() for node in op.nodes)


def _noise(tensor: Tensor) -> Tensor:
    """A fixed random cotangent."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator).to(tensor)
