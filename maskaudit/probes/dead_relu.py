"""Dead ReLU: units that are positive on no audited point

A unit is one entry of the output of a ReLU (relu, relu6, clamp or threshold from 0).
It is dead when its input is ≤ 0 on every audited point. The headline is the dead share of
the worst layer. Also, per point: the largest share of zero units in any layer, and
whether some layer is zero altogether, which cuts every gradient that runs through it.

Raised when
    More than nine tenths of the units of one layer are dead.

What it means
    What remains of the layer is so little that the gradient sees a fraction of the
    network. A PGD-trained net with three quarters of its units dead was healthy
    and robust, so this is a hint about the network and no proof of masking. The
    audited points are few: a unit called dead here may live on others.

What to do
    Attack with a leaky or softplus backward in this layer. When training, lower
    the learning rate or the bias decay, or use leaky ReLU.

Source
    - Lu, Shin, Su & Karniadakis 2020, Dying ReLU and initialization: theory and numerical examples
    - Maas, Hannun & Ng 2013, Rectifier nonlinearities improve neural network acoustic models
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, NotApplicable, ProbeContext
from maskaudit.probes.observe import ActivationSite, observe, opaque
from maskaudit.results import ProbeFinding
from maskaudit.trace.rectifiers import ActivationCall, off_everywhere
from maskaudit.trace.vocabulary import rectifiers

#: Layers named in a finding, worst first.
NAMED_LAYERS = 5


def _is_relu(call: ActivationCall) -> bool:
    """Whether the call cuts its argument off at exactly 0 from below."""
    floor = call.floor
    if call.op in ("relu", "relu6") or not isinstance(floor, (int, float)) or floor != 0:
        return call.op in ("relu", "relu6")
    if call.op == "threshold":
        return bool(call.argument(1, "value") == 0)
    ceiling = call.argument(1, "max_val", "max")
    return call.op == "clamp_min" or ceiling is None or (call.op == "hardtanh" and ceiling > 1)


@dataclass
class _Layer:
    """One layer: units that are dead on all points so far, and per point the share of units that are zero."""

    dead: Tensor
    zero_share: list[Tensor] = field(default_factory=list)


@dataclass
class _Layers:
    """All layers, filled while the model runs; one whose width depends on the batch as at the first."""

    points: int
    layers: dict[ActivationSite, _Layer] = field(default_factory=dict)

    def add(self, site: ActivationSite, call: ActivationCall, rows: int) -> None:
        off = call.off() if _is_relu(call) else None
        if off is None:
            return
        off = off[:rows].cpu()
        layer = self.layers.get(site)
        dead = off_everywhere(off, None if layer is None else layer.dead)
        if dead is None:
            return
        layer = self.layers.setdefault(site, _Layer(dead))
        layer.dead = dead
        layer.zero_share.append(1 - (~off).flatten(1).double().mean(dim=1))

    def per_point(self) -> Tensor:
        """Largest share of zero units in any layer that keeps one row per point, shape (N,)."""
        rows = [torch.cat(layer.zero_share) for layer in self.layers.values()]
        whole = [row for row in rows if len(row) == self.points]
        return torch.stack(whole).amax(dim=0) if whole else torch.zeros(0)


def measure(context: ProbeContext) -> Measurement:
    """Dead share of the worst ReLU layer."""
    seen = _Layers(len(context.x))
    observe(context, rectifiers("dead"), seen.add)
    if not seen.layers:
        hidden = " TorchScript code is opaque, one inside it would not be seen." if opaque(context.target.model) else ""
        kind = "module" if isinstance(context.target.model, nn.Module) else "callable"
        raise NotApplicable(f"No ReLU was seen while the {kind} ran.{hidden}")
    found = [(site, int(layer.dead.sum()), layer.dead.numel()) for site, layer in seen.layers.items()]
    found.sort(key=lambda item: -item[1] / item[2])
    _, dead, units = found[0]
    per_point = seen.per_point()
    details: dict[str, Any] = {
        "points": len(context.x),
        "worst_units_dead": dead,
        "units_dead": sum(item[1] for item in found),
        "units": sum(item[2] for item in found),
        "points_with_a_zero_layer": int((per_point == 1).sum()),
        "layers": [
            {"place": site.location.words, "call": site.ordinal, "dead": count, "units": total}
            for site, count, total in found
        ],
    }
    named = tuple(
        ProbeFinding(f"{site.location.words}: {count} of {total} units are dead", site.location)
        for site, count, total in found[:NAMED_LAYERS]
        if count
    )
    return Measurement(
        dead / units, "share of the worst layer's units", units, findings=named, details=details,
        per_point=tuple(per_point.tolist()),
    )  # fmt: skip


PROBE = documented_probe("dead-relu", measure, needs=(), docstring=__doc__)
