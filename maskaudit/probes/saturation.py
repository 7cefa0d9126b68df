"""Saturation: activations in the flat region of a bounded function

Every bounded activation (tanh, sigmoid, softsign, hardtanh, hardsigmoid, clamp
with an upper limit, the upper limit of relu6) is counted as flat where its
slope is below 1/1000 of its largest slope. The headline is the flat share of all
activations of the worst layer, over the audited points. Reported as well is the
share of points whose softmax has saturated in float32: p_y equals exactly 1, or
every entry of the cross-entropy gradient in the logits is exactly 0.

Raised when
    More than half of the activations of one layer are flat.

What it means
    Almost no gradient passes through this layer, so attacks that follow the
    gradient make no progress whether or not the model is robust. A layer can be flat
    and the model honest: only attacks that break points in spite of it prove
    masking. The lower side of relu6 is counted by dead-relu instead, and what
    TorchScript code does inside cannot be seen.

What to do
    Attack with a tempered or straight-through backward in this layer, and with
    attacks that use scores or decisions only. When training, lower the gain in
    front of the layer or use an activation that does not saturate.

Source
    - Carlini & Wagner 2016, Defensive distillation is not robust to adversarial examples
    - Athalye, Carlini & Wagner 2018, Obfuscated gradients give a false sense of security, section 3
    - Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural networks
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, ProbeContext
from maskaudit.probes.observe import ActivationSite, observe, opaque
from maskaudit.results import ProbeFinding
from maskaudit.trace.rectifiers import ActivationCall
from maskaudit.verdict.limits import FLAT_SLOPE

#: Layers named in a finding, worst first.
NAMED_LAYERS = 5


def _hardtanh(call: ActivationCall) -> Tensor:
    low = call.argument(0, "min_val", default=-1.0)
    high = call.argument(1, "max_val", default=1.0)
    if low == 0:  # relu6 and its kind: the lower side is that of a ReLU
        return torch.gt(call.x, high)
    return torch.lt(call.x, low) | torch.gt(call.x, high)


def _clamp(call: ActivationCall) -> Tensor | None:
    """Outside the limits; a clamp without upper limit is a ReLU or a guard against log 0, not a bounded activation."""
    low, high = call.argument(0, "min"), call.argument(1, "max")
    if high is None:
        return None
    above = torch.gt(call.x, high)
    return above if low is None else above | torch.lt(call.x, low)


#: Which units (of the argument's shape) are flat, by name of the activation; None where a call is no bounded one.
_FLAT: dict[str, Callable[[ActivationCall], Tensor | None]] = {
    "tanh": lambda call: 1 - call.x.double().tanh().square() < FLAT_SLOPE,
    "sigmoid": lambda call: (p := call.x.double().sigmoid()) * (1 - p) < FLAT_SLOPE * 0.25,
    "softsign": lambda call: (1 + call.x.double().abs()).square().reciprocal() < FLAT_SLOPE,
    "hardtanh": _hardtanh,
    "relu6": lambda call: call.x > 6,
    "hardsigmoid": lambda call: call.x.abs() > 3,
    "clamp": _clamp,
}


@dataclass
class _Counts:
    """Flat and all activations seen at each place."""

    flat: dict[ActivationSite, int] = field(default_factory=dict)
    total: dict[ActivationSite, int] = field(default_factory=dict)

    def add(self, site: ActivationSite, call: ActivationCall, rows: int) -> None:
        mask = _FLAT[call.op](call)
        if mask is not None:
            mask = mask[:rows]
            self.flat[site] = self.flat.get(site, 0) + int(mask.sum())
            self.total[site] = self.total.get(site, 0) + mask.numel()

    def shares(self) -> list[tuple[ActivationSite, float]]:
        """Places with their flat share, worst first."""
        found = [(site, self.flat[site] / total) for site, total in self.total.items() if total]
        return sorted(found, key=lambda item: -item[1])


def saturated_softmax(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Per point (N,): p_y is exactly 1 in float32; the whole logit gradient p − e_y is exactly 0 in float32."""
    p = torch.softmax(scores.float(), dim=1)
    certain = p.gather(1, y[:, None]).squeeze(1) == 1
    others = p.scatter(1, y[:, None], 0.0)
    return certain, certain & (others == 0).all(dim=1)


def measure(context: ProbeContext) -> Measurement:
    """Flat share of the worst bounded activation; the saturated softmax where there is none to see."""
    certain, dead = saturated_softmax(context.target.scores(context.x), context.y)
    counts = _Counts()
    observe(context, frozenset(_FLAT), counts.add)
    layers = counts.shares()
    n = len(context.x)
    details: dict[str, Any] = {
        "softmax_certain_share": float(certain.double().mean()),
        "softmax_gradient_zero_share": float(dead.double().mean()),
        "layers": [{"place": site.location.words, "call": site.ordinal, "flat_share": share} for site, share in layers],
    }
    if opaque(context.target.model):
        details["note"] = "TorchScript code is opaque: activations inside it were not seen."
    if not layers:
        count = int(certain.sum())
        details.setdefault("note", "No bounded activation was seen; the figure is that of the softmax.")
        return Measurement(
            count / n, "share of points with p_y = 1 in float32", n, count=count, details=details, graded=False
        )
    named = tuple(
        ProbeFinding(f"{site.location.words}: {share:.1%} of the activations are flat", site.location)
        for site, share in layers[:NAMED_LAYERS]
        if share > 0
    )
    return Measurement(layers[0][1], "share of the worst layer's activations", n, findings=named, details=details)


PROBE = documented_probe("saturation", measure, needs=(), docstring=__doc__)
