"""A model with repairs: same forward values, other gradients.

A `RepairMode` does what can be done at the level of calls; scripted ops are
reached through their autograd nodes after the forward pass. Nothing of the model
is touched but the methods of repaired custom Functions, which are put back when
the context ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, allow_mutation_on_saved_tensors

from maskaudit.repairs.dormant import DormantUnits
from maskaudit.repairs.functions import FunctionPatches
from maskaudit.repairs.graft import graft
from maskaudit.repairs.mode import RepairMode
from maskaudit.settings.plan import Repair
from maskaudit.trace.calls import node_op_name, tensors_of
from maskaudit.trace.scope import as_written, graph_visible


class RepairedModel:
    """Callable like the model; between calls it holds nothing of the last one but the tapped tensor.

    Args:
        model: the audited module or callable.
        repairs: what to repair, in any order.
        stand_ins: learned stand-ins by module path, for the repairs that need one ("" is the whole model).
        dormant: units that are off on all audited points, for the repairs that open them.
    """

    def __init__(
        self, model: nn.Module | Callable[[Tensor], Any], repairs: Sequence[Repair],
        stand_ins: Mapping[str, nn.Module] | None = None, dormant: DormantUnits | None = None,
    ) -> None:  # fmt: skip
        self.model: Callable[[Tensor], Any] = as_written(model)
        self.repairs = tuple(repairs)
        self.tapped: Tensor | None = None
        wanted = {r.location.module for r in self.repairs if r.remedy == "stand-in"}
        self.stand_ins = {path: net for path, net in (stand_ins or {}).items() if path in wanted}
        self._dormant = dormant or {}
        self._taps = any(r.remedy == "tap" for r in self.repairs)
        self._functions = FunctionPatches([r.location.op for r in self.repairs if r.remedy == "function-forward"])
        self._keeps = any(r.remedy == "keep-saved" for r in self.repairs)
        self._nodes = {r.location.op.rstrip("_") for r in self.repairs if r.by_node}

    def __call__(self, inputs: Tensor) -> Any:
        """The model's own output, bit for bit, on a repaired graph."""
        if not (torch.is_grad_enabled() and inputs.requires_grad) and not self._taps:
            return self.model(inputs)
        mode = RepairMode(self.model, self.repairs, inputs, self.stand_ins, self._dormant)
        with graph_visible():
            try:
                with mode.watching():
                    output = self.model(inputs)
            except Exception:
                if "" not in self.stand_ins:
                    raise
                with torch.no_grad():  # it may answer where no gradient is asked for, which comes from elsewhere
                    output = self.model(inputs.detach())
        self.tapped = mode.tapped
        if "" in self.stand_ins and isinstance(output, Tensor):
            output = graft(output, self.stand_ins[""](inputs).view(output.shape))
        if self._nodes:
            for tensor in (*tensors_of(output), *(() if mode.tapped is None else (mode.tapped,))):
                self._repair_nodes(tensor)
        return output

    @contextlib.contextmanager
    def installed(self) -> Iterator[RepairedModel]:
        """Undo on leaving what repairs changed in custom Functions; forward and backward passes belong inside."""
        self._functions.install()
        try:
            with allow_mutation_on_saved_tensors() if self._keeps else contextlib.nullcontext():
                yield self
        finally:
            self._functions.undo()
            self.tapped = None

    def _repair_nodes(self, output: Tensor) -> None:
        stack = [output.grad_fn]
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node_op_name(node) in self._nodes:
                node.register_hook(_pass_through)
            stack.extend(below for below, _ in node.next_functions)


def _pass_through(
    grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...] | None:
    """Node hook: what arrives goes on to the first input, if it has the same shape."""
    arriving = grad_outputs[0]
    first = grad_inputs[0] if grad_inputs else None
    if arriving is None or first is None or first.shape != arriving.shape:
        return None
    return (arriving, *grad_inputs[1:])
