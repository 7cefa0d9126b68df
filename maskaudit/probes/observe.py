"""See the activations of a model while it runs, and say where in the model they are; TorchScript code is opaque."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from maskaudit.probes.interface import ProbeContext
from maskaudit.results import Location
from maskaudit.trace.functorch import bare, below
from maskaudit.trace.rectifiers import ActivationCall, activation, canonical
from maskaudit.trace.watch import WatchedCall, watch_points


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

    def name_of(call: WatchedCall) -> str | None:
        found = activation(call.name, call.args, call.kwargs) if canonical(call.name) in ops else None
        x = None if found is None else bare(found.x)
        return None if found is None or x is None or x.dim() < 2 or x.shape[0] % call.points else found.op

    def tell(place: Location, number: int, call: WatchedCall) -> None:
        found = activation(call.name, call.args, call.kwargs)
        assert found is not None
        with below():
            seen = replace(found, x=bare(found.x).detach())
            handler(ActivationSite(place, number), seen, seen.x.shape[0] // call.points * call.meant)

    watch_points(context.target, context.x, name_of, tell)


def opaque(model: object) -> bool:
    """Whether (part of) the model is TorchScript, whose activations cannot be seen from Python."""
    if isinstance(model, nn.Module):
        return any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    return isinstance(model, torch.jit.ScriptFunction)
