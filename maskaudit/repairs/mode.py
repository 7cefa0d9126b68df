"""One forward pass under repair: calls of torch and modules give what they return another gradient."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from maskaudit.repairs.dormant import DormantUnits, Opener
from maskaudit.repairs.graft import graft
from maskaudit.repairs.reattach import Entries
from maskaudit.repairs.surrogates import (
    ABOVE,
    BELOW,
    HARD_CHOICES,
    on_stand_ins,
    soft_choice,
    soft_comparison,
    softened,
)
from maskaudit.settings.plan import Repair
from maskaudit.trace.calls import ESCAPES, PROPERTIES, called, mapped, tensors_of
from maskaudit.trace.functorch import bare
from maskaudit.trace.scope import user_site
from maskaudit.trace.vocabulary import HARD
from maskaudit.trace.watch import CallWatcher


class RepairMode:
    """One forward pass under repair."""

    def __init__(
        self, model: object, repairs: Sequence[Repair], inputs: Tensor, stand_ins: Mapping[str, nn.Module],
        dormant: DormantUnits,
    ) -> None:  # fmt: skip
        self.inputs = inputs
        self.opener = Opener(dormant)
        self.stand_ins = stand_ins
        self.carrying = any(r.remedy == "carry" for r in repairs)
        self.prefixes = {r.location.module for r in repairs if r.remedy == "prefix"}
        self.by_op: dict[str, list[Repair]] = {}
        self.enable: list[str] = []
        entries: set[str] = set()
        self.boundaries = {r.location.module for r in repairs if r.remedy == "boundary"} | {p for p in stand_ins if p}
        self._at_boundary: list[Tensor | None] = []
        for repair in repairs:
            if repair.remedy == "enable-grad":
                self.enable.append(repair.location.module)
            elif repair.remedy == "entry":
                entries.add(repair.location.module)
            elif not repair.by_node and repair.remedy not in ("boundary", "stand-in", "prefix", "carry", "keep-saved"):
                self.by_op.setdefault(repair.location.op, []).append(repair)
        self._watcher = CallWatcher(model, self._run, before=self._before, after=self._after)
        self.scope, self.watching = self._watcher.scope, self._watcher.watching
        self.constants: set[int] = set()
        if isinstance(model, nn.Module):
            self.constants = {id(t) for t in (*model.parameters(), *model.buffers())}
        self.tapped: Tensor | None = None
        self.shadows: dict[int, tuple[Tensor, Tensor]] = {}
        self.entries = Entries(inputs, entries, self.constants)

    def _run(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in PROPERTIES or name == "_set_grad_enabled":
            return func(*args, **kwargs)
        if self.entries:
            args = self.entries.tie(args, self.scope.path)
        repair = self._match(name)
        if repair is not None and repair.remedy == "ignore-hook":
            return RemovableHandle(OrderedDict())
        inputs = tensors_of((args, kwargs))
        if name in ESCAPES and args and isinstance(args[0], Tensor):
            args = (args[0].detach(), *args[1:])  # a stand-in may have put it on the graph, which numpy refuses
        if repair is not None and name == "detach_":  # takes the tensor itself off the graph: afterwards it is too late
            return args[0]
        opened: Tensor | None = None
        if repair is not None and repair.remedy == "open":
            opened = self.opener.added(repair.location, name, args, kwargs)
        live = next((t for t in inputs if bare(t).requires_grad and id(t) not in self.constants), None)
        if self.enable and live is not None and not torch.is_grad_enabled() and self._may_enable():
            with torch.inference_mode(False), torch.enable_grad():
                output = func(*mapped(args, _normal), **mapped(kwargs, _normal))
        else:
            output, _ = called(func, args, kwargs)
        self.entries.escaped = self.entries.escaped or name in ESCAPES
        if opened is not None and isinstance(output, Tensor) and opened.shape == output.shape:
            with torch.enable_grad():
                output = graft(output, output + opened)
        elif repair is not None and repair.remedy != "open" and (live is not None or repair.remedy == "tap"):
            output = self._repair(repair, func, name, args, kwargs, live, output)
        elif self.carrying and live is not None and name in HARD_CHOICES | HARD:
            output = self._soften_choice(name, args, kwargs, live, output)
        elif (self.shadows or self.carrying) and isinstance(output, Tensor):
            output = self._carry(func, name, args, kwargs, output)
        if self.entries:
            output = self.entries.note(output, inputs, self.scope.path)
        return output

    # --- one call ---------------------------------------------------------------------------------

    def _match(self, name: str) -> Repair | None:
        candidates = self.by_op.get(name)
        if not candidates:
            return None
        site = user_site()
        place = self._watcher.place(name, site)
        return next((repair for repair in candidates if site.function is None and repair.location == place), None)

    def _repair(
        self, repair: Repair, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        live: Tensor | None, output: Any,
    ) -> Any:  # fmt: skip
        if repair.remedy == "tap":
            self.tapped = bare(tensors_of(args)[0])
            return output
        if live is None or not isinstance(output, Tensor):
            return output
        with torch.enable_grad():
            if repair.remedy == "mute":
                return output.detach()
            if repair.remedy == "gate-identity":
                same = [t for t in tensors_of(args) if bare(t).requires_grad and t.shape == output.shape]
                return graft(output, same[0]) if same else output
            if repair.remedy == "soften":
                return graft(output, softened(func, name, args, kwargs, live, repair.scale))
            if name.startswith(("argmax", "argmin")):
                return self._soften_choice(name, args, kwargs, live, output)
            compared = soft_comparison(name, args)
            stand_in = live if compared is None else compared
            if kwargs.get("out") is not None:  # the model goes on with the tensor that it gave
                self._shade(output, stand_in)
                return output
            return self._shade_or_graft(output, stand_in)

    def _soften_choice(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], live: Tensor, output: Any
    ) -> Any:
        """A choice, a comparison or a rounding gets a stand-in; indices carry the soft choice behind them."""
        with torch.enable_grad():
            if name in HARD:
                return self._shade_or_graft(output, live) if isinstance(output, Tensor) else output
            if name in BELOW | ABOVE:
                compared = soft_comparison(name, args)
                assert compared is not None
                self._shade(output, compared)
                return output
            for tensor in tensors_of(output):
                if tensor.dtype == torch.int64:
                    self._shade(tensor, soft_choice(name, args, kwargs, live, tensor.shape))
        return output

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
        dead = not bare(output).requires_grad

        def stand_in(tensor: Tensor) -> Tensor | None:
            held = self.shadows.get(id(tensor))
            if held is not None:
                return held[1]
            lost = self.carrying and dead and bare(tensor).requires_grad and id(tensor) not in self.constants
            return tensor if lost and tensor.is_floating_point() else None

        if not any(stand_in(t) is not None for t in tensors_of((args, kwargs))):
            return output

        with torch.enable_grad():
            result = on_stand_ins(func, name, args, kwargs, stand_in)
            if result is None or not bare(result).requires_grad:
                return output
            return self._shade_or_graft(output, result)

    def _may_enable(self) -> bool:
        path = self.scope.path
        if torch.is_inference_mode_enabled():  # entered out of sight: wherever it holds, it is what was named
            return user_site().function is None
        inside = any(m == "" or path == m or path.startswith(f"{m}.") for m in self.enable)
        return inside and user_site().function is None

    # --- modules ----------------------------------------------------------------------------------

    def _before(self, module: nn.Module, inputs: Any) -> Any:
        if self.entries:
            inputs = self.entries.tie(inputs, self.scope.path)
        name = self.scope.names.get(id(module))
        if name in self.boundaries:
            self._at_boundary.append(next(iter(tensors_of(inputs)), self.inputs))
        if name in self.prefixes:
            return self._from_input(inputs)
        return inputs if self.entries else None

    def _after(self, module: nn.Module, output: Any) -> Any:
        name = self.scope.names.get(id(module))
        if name in self.boundaries and self._at_boundary:
            return self._across(name, output, self._at_boundary.pop())
        return self.entries.tie(output, self.scope.path) if self.entries else None

    def _across(self, name: str, output: Any, source: Tensor | None) -> Any:
        """The module's output, its gradient going to its input: through a learned stand-in, or as it is."""
        if source is None or not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        if not source.requires_grad:
            return None
        if name in self.stand_ins:
            with torch.enable_grad():
                return graft(output, self.stand_ins[name](source).view(output.shape))
        return graft(output, source) if source.shape == output.shape else None

    def _from_input(self, inputs: Any) -> Any:
        """The first tensor of the model's input shape, its gradient going straight to the model's input."""
        if type(inputs) is not tuple:
            return None
        for place, value in enumerate(inputs):
            if isinstance(value, Tensor) and value.shape == self.inputs.shape and value.is_floating_point():
                return (*inputs[:place], graft(value, self.inputs), *inputs[place + 1 :])
        return None


def _normal(tensor: Tensor) -> Tensor:
    """A copy of an inference tensor, which could not be saved for a backward pass; others as they are."""
    return tensor.clone() if tensor.is_inference() else tensor
