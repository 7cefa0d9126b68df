"""Run a model with repairs: same forward values, other gradients.

One `TorchFunctionMode` does what can be done at the level of calls; custom
Functions and scripted ops are reached through their autograd nodes after the
forward pass. Nothing of the model is touched but the `backward` attribute of
repaired Functions, which is put back when the context ends.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from maskaudit.repairs.graft import graft
from maskaudit.repairs.interface import Repair
from maskaudit.repairs.surrogates import on_stand_ins, soft_choice, soft_comparison, softened
from maskaudit.trace.observe import ESCAPES, PROPERTIES, node_op_name, op_name, tensors_of
from maskaudit.trace.scope import ModuleScope, graph_visible, user_site


class RepairedModel:
    """Callable like the model; between calls it holds nothing of the last one but the tapped tensor.

    Args:
        model: the audited module or callable.
        repairs: what to repair, in any order.
    """

    def __init__(self, model: nn.Module | Callable[[Tensor], Any], repairs: Sequence[Repair]) -> None:
        self.model, self.repairs = model, tuple(repairs)
        self.tapped: Tensor | None = None
        self._taps = any(r.remedy == "tap" for r in self.repairs)
        self._patches: dict[type, Any] = {}
        self._functions = {r.location.op for r in self.repairs if r.remedy == "function-identity"}
        self._nodes = {r.location.op.rstrip("_") for r in self.repairs if r.by_node}

    def __call__(self, inputs: Tensor) -> Any:
        """The model's own output, bit for bit, on a repaired graph."""
        if not (torch.is_grad_enabled() and inputs.requires_grad) and not self._taps:
            return self.model(inputs)
        mode = _Mode(self.model, self.repairs, inputs)
        with graph_visible(), mode.watching():
            output = self.model(inputs)
        self.tapped = mode.tapped
        if self._functions or self._nodes:
            for tensor in (*tensors_of(output), *(() if mode.tapped is None else (mode.tapped,))):
                self._repair_nodes(tensor)
        return output

    @contextlib.contextmanager
    def installed(self) -> Iterator[RepairedModel]:
        """Undo on leaving what repairs changed in custom Functions; backward passes belong inside."""
        try:
            yield self
        finally:
            for function, original in self._patches.items():
                if original is None:
                    del function.backward  # type: ignore[attr-defined]
                else:
                    function.backward = original  # type: ignore[attr-defined]
            self._patches.clear()
            self.tapped = None

    def _repair_nodes(self, output: Tensor) -> None:
        stack = [output.grad_fn]
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            function = getattr(node, "_forward_cls", None)
            if function is not None and function.__name__ in self._functions:
                self._patch(function)
            elif node_op_name(node) in self._nodes:
                node.register_hook(_pass_through)
            stack.extend(below for below, _ in node.next_functions)

    def _patch(self, function: type) -> None:
        if function not in self._patches:
            self._patches[function] = function.__dict__.get("backward")
            function.backward = staticmethod(_identity_backward)  # type: ignore[attr-defined]


def _pass_through(
    grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...] | None:
    """Node hook: what arrives goes on to the first input, if it has the same shape."""
    arriving = grad_outputs[0]
    first = grad_inputs[0] if grad_inputs else None
    if arriving is None or first is None or first.shape != arriving.shape:
        return None
    return (arriving, *grad_inputs[1:])


def _identity_backward(ctx: Any, *gradients: Tensor) -> Any:
    """Backward of a custom Function that passes the gradient to the first input of the same shape."""
    results: list[Tensor | None] = []
    arriving = next((g for g in gradients if g is not None), None)
    for needed, (below, number) in zip(ctx.needs_input_grad, ctx.next_functions, strict=False):
        fits = needed and arriving is not None and below is not None and _shape(below, number) == arriving.shape
        results.append(arriving if fits else None)
        arriving = None if fits else arriving
    results += [None] * (len(ctx.needs_input_grad) - len(results))
    return tuple(results)


def _shape(node: Any, number: int) -> torch.Size | None:
    variable = getattr(node, "variable", None)
    if variable is not None:
        return torch.Size(variable.shape)
    metadata = getattr(node, "_input_metadata", ())
    return torch.Size(metadata[number].shape) if number < len(metadata) else None


class _Mode(TorchFunctionMode):
    """One forward pass under repair."""

    def __init__(self, model: object, repairs: Sequence[Repair], inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs
        self.by_op: dict[str, list[Repair]] = {}
        self.enable: list[str] = []
        self.entries: set[str] = set()
        self.boundaries = {r.location.module for r in repairs if r.remedy == "boundary"}
        self._at_boundary: list[Tensor] = []
        for repair in repairs:
            if repair.remedy == "enable-grad":
                self.enable.append(repair.location.module)
            elif repair.remedy == "entry":
                self.entries.add(repair.location.module)
            elif not repair.by_node and repair.remedy != "boundary":
                self.by_op.setdefault(repair.location.op, []).append(repair)
        self.scope = ModuleScope(model, before=self._before, after=self._after)
        self.constants: set[int] = set()
        if isinstance(model, nn.Module):
            self.constants = {id(t) for t in (*model.parameters(), *model.buffers())}
        self.tapped: Tensor | None = None
        self.made: dict[int, Tensor] = {}
        self.shadows: dict[int, tuple[Tensor, Tensor]] = {}
        self.live_by_shape: dict[tuple[int, ...], Tensor] = {tuple(inputs.shape): inputs}
        self.escaped = False
        self._busy = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[_Mode]:
        with self.scope.watching(), self:
            yield self

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = op_name(func)
        if self._busy or name in PROPERTIES or name == "_set_grad_enabled":
            return func(*args, **kwargs)
        self._busy = True
        try:
            return self._run(func, name, args, kwargs)
        finally:
            self._busy = False

    def _run(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.entries:
            args = self._tie(args)
        repair = self._match(name)
        if repair is not None and repair.remedy == "ignore-hook":
            return RemovableHandle(OrderedDict())
        inputs = tensors_of((args, kwargs))
        live = next((t for t in inputs if t.requires_grad and id(t) not in self.constants), None)
        if self.enable and live is not None and not torch.is_grad_enabled() and self._may_enable():
            with torch.enable_grad():
                output = func(*args, **kwargs)
        else:
            output = func(*args, **kwargs)
        self.escaped = self.escaped or name in ESCAPES
        if repair is not None and (live is not None or repair.remedy == "tap"):
            output = self._repair(repair, func, name, args, kwargs, live, output)
        elif self.shadows and isinstance(output, Tensor):
            output = self._carry(func, name, args, kwargs, output)
        if self.entries:
            output = self._note(output, inputs)
        return output

    # --- one call ---------------------------------------------------------------------------------

    def _match(self, name: str) -> Repair | None:
        candidates = self.by_op.get(name)
        if not candidates:
            return None
        module, site = self.scope.path, user_site()
        for repair in candidates:
            where = repair.location
            if (where.module, where.file, where.line) == (module, site.file, site.line) and site.function is None:
                return repair
        return None

    def _repair(
        self, repair: Repair, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        live: Tensor | None, output: Any,
    ) -> Any:  # fmt: skip
        if repair.remedy == "tap":
            self.tapped = tensors_of(args)[0]
            return output
        if live is None or not isinstance(output, Tensor):
            return output
        with torch.enable_grad():
            if repair.remedy == "mute":
                return output.detach()
            if repair.remedy == "gate-identity":
                same = [t for t in tensors_of(args) if t.requires_grad and t.shape == output.shape]
                return graft(output, same[0]) if same else output
            if repair.remedy == "soften":
                return graft(output, softened(func, name, args, kwargs, live, repair.scale))
            if name.startswith(("argmax", "argmin")):
                self._shade(output, soft_choice(args, kwargs, live if name == "argmax" else -live))
                return output
            compared = soft_comparison(name, args)
            stand_in = live if compared is None else compared
            return self._shade_or_graft(output, stand_in)

    def _shade_or_graft(self, output: Tensor, stand_in: Tensor) -> Tensor:
        if output.is_floating_point() and output.shape == stand_in.shape:
            return graft(output, stand_in)
        self._shade(output, stand_in)
        return output

    def _shade(self, output: Tensor, stand_in: Tensor) -> None:
        self.shadows[id(output)] = (output, stand_in)

    def _carry(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """Take stand-ins of dead inputs along; where a floating tensor comes out, it gets its gradient back."""
        if not any(id(t) in self.shadows for t in tensors_of((args, kwargs))):
            return output

        def stand_in(tensor: Tensor) -> Tensor | None:
            held = self.shadows.get(id(tensor))
            return held[1] if held is not None else None

        with torch.enable_grad():
            result = on_stand_ins(func, name, args, kwargs, stand_in)
            if result is None or not result.requires_grad:
                return output
            return self._shade_or_graft(output, result)

    def _may_enable(self) -> bool:
        path = self.scope.path
        inside = any(m == "" or path == m or path.startswith(f"{m}.") for m in self.enable)
        return inside and user_site().function is None

    # --- data that leave torch and come back ------------------------------------------------------

    def _note(self, output: Any, inputs: tuple[Tensor, ...]) -> Any:
        """Remember live tensors by shape; tie a dead output made of nothing live to the live tensor of its shape."""
        for tensor in (*inputs, *tensors_of(output)):
            if tensor.requires_grad and id(tensor) not in self.constants:
                self.live_by_shape[tuple(tensor.shape)] = tensor
            self.made[id(tensor)] = tensor
        if isinstance(output, Tensor) and not inputs and self.scope.path in self.entries:
            output = self._tied(output)
            self.made[id(output)] = output
        return output

    def _tied(self, tensor: Tensor) -> Tensor:
        source = self.live_by_shape.get(tuple(tensor.shape))
        dead = tensor.is_floating_point() and not tensor.requires_grad and id(tensor) not in self.constants
        if not (self.escaped and dead and source is not None):
            return tensor
        return graft(tensor, source)

    def _tie(self, value: Any) -> Any:
        """Tensors that no call of this pass made, met in a module with an entry, get their gradient back."""
        if isinstance(value, Tensor):
            known = value is self.inputs or id(value) in self.made or self.scope.path not in self.entries
            return value if known else self._tied(value)
        if type(value) in (tuple, list):
            return type(value)(self._tie(item) for item in value)
        return value

    # --- modules ----------------------------------------------------------------------------------

    def _before(self, module: nn.Module, inputs: Any) -> Any:
        if self._busy:
            return None
        self._busy = True
        try:
            if self.entries:
                inputs = self._tie(inputs)
            if self.scope.names.get(id(module)) in self.boundaries:
                self._at_boundary.append(next(iter(tensors_of(inputs)), self.inputs))
            return inputs if self.entries else None
        finally:
            self._busy = False

    def _after(self, module: nn.Module, output: Any) -> Any:
        if self._busy:
            return None
        self._busy = True
        try:
            if self.scope.names.get(id(module)) in self.boundaries and self._at_boundary:
                source = self._at_boundary.pop()
                if isinstance(output, Tensor) and source.requires_grad and source.shape == output.shape:
                    return graft(output, source) if output.is_floating_point() else None
            return self._tie(output) if self.entries else None
        finally:
            self._busy = False
