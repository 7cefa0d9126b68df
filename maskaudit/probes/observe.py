"""See the activations of a model while it runs, and say where in the model they are; TorchScript code is opaque."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maskaudit.probes.interface import ProbeContext
from maskaudit.results import Location
from maskaudit.trace.functorch import bare, below
from maskaudit.trace.rectifiers import ActivationCall, canonical
from maskaudit.trace.watch import Call, watch_points


@dataclass(frozen=True)
class ActivationSite:
    """One place where an activation is computed: the `ordinal`-th call there within a forward pass."""

    location: Location
    ordinal: int


#: Told of a place, the call there, and how many rows of its tensor belong to points of the audit, before copies.
Handler = Callable[[ActivationSite, ActivationCall, int], None]


def observe(context: ProbeContext, ops: frozenset[str], handler: Handler) -> None:
    """One forward pass over the points of `context`; `handler` is told of each call of one of `ops`, before it runs.

    Only of calls on floating-point tensors of two or more dimensions, whose first holds a multiple of the batch.
    """

    def name_of(call: Call) -> str | None:
        op = canonical(call.name)
        x = _argument(call) if op in ops else None
        told = x is not None and x.is_floating_point() and x.dim() >= 2 and x.shape[0] % call.points == 0
        return op if told else None

    def tell(place: Location, number: int, call: Call) -> None:
        x = _argument(call)
        assert x is not None
        with below():
            seen = ActivationCall(place.op, x.detach(), call.args[1:], call.kwargs)
            handler(ActivationSite(place, number), seen, x.shape[0] // call.points * call.meant)

    watch_points(context.target, context.x, name_of, tell)


def _argument(call: Call) -> Tensor | None:
    """The tensor (N, …) that an activation is given."""
    x = call.args[0] if call.args else call.kwargs.get("input")
    return bare(x) if isinstance(x, Tensor) else None


def opaque(model: object) -> bool:
    """Whether (part of) the model is TorchScript, whose activations cannot be seen from Python."""
    if isinstance(model, nn.Module):
        return any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    return isinstance(model, torch.jit.ScriptFunction)


def describe(location: Location) -> str:
    """`tanh in layers.1 (net.py:14)`, as far as known."""
    words = location.op or "activation"
    if location.module:
        words += f" in {location.module}"
    if location.file is not None:
        words += f" ({Path(location.file).name}:{location.line})"
    return words
