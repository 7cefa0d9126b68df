"""Layer-wise gradient flow: how much of the gradient is left at each depth

The gradient of the logit margin is followed from the output to the input, on a few points, and its norm is taken
at every layer through which all of it passes: in a network with branches or residual paths, where these meet. The
headline is the share of points at which it is lost to depth: at the input it is zero, not finite or smaller than a
normal number, and it was already close to that at the last layer that it reached. Two more backward passes, with the
gradient at the output scaled up and down, show whether anything on the way clips or normalises it: a backward pass
that does neither is linear.

Raised when
    At more than 5 % of the points the gradient leaves the output and fades or overflows, layer by layer,
    before the input. A gradient that shrinks or grows by any factor and arrives is no finding.

What it means
    The gradient is a product with one factor per layer: at most 0.25 for a sigmoid, 1 for orthogonal weights and
    for the identity in a residual path. Small factors multiply to less than the smallest number that the
    model's arithmetic has, and an attack that follows what is left does not move. Where the gradient is clipped or
    normalised on the way, its size at the input says nothing about the model, and what lies behind may have vanished.

What to do
    Scale the loss up before the backward pass, or compute it in float64; where the units are saturated, attack
    through a tempered backward pass; take clipping and normalising hooks out of the model that is audited.

Source
    - Hochreiter 1991, Untersuchungen zu dynamischen neuronalen Netzen (vanishing gradients)
    - Bengio, Simard & Frasconi 1994, Learning long-term dependencies with gradient descent is difficult
    - Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural networks
    - Pascanu, Mikolov & Bengio 2013, On the difficulty of training recurrent neural networks (clipping)
"""

from __future__ import annotations

import math
from typing import Any

from maskaudit.errors import GradientError
from maskaudit.probes.docs import documented_probe
from maskaudit.probes.interface import Measurement, NotApplicable, ProbeContext
from maskaudit.results import ProbeFinding
from maskaudit.trace.depth import DepthFlow, Layer, depth_flow

#: Points measured: they pass through the model together, once forward and three times backward.
MAX_POINTS = 8


def measure(context: ProbeContext) -> Measurement:
    """Share of points whose gradient fades or overflows on its way through the layers."""
    x, y = context.x[:MAX_POINTS], context.y[:MAX_POINTS]
    try:
        flow = depth_flow(context.target, x, y)
    except GradientError as error:
        raise NotApplicable(f"The model has no gradient. {error}") from error
    if flow is None:
        raise NotApplicable("The output is not connected to the input in the autograd graph; see zero-gradient.")
    count = int(flow.faded.sum())
    return Measurement(
        count / len(x), "share of points", len(x), count=count, findings=_findings(flow, count), details=_details(flow),
        per_point=tuple(flow.change.tolist()),
    )  # fmt: skip


def _findings(flow: DepthFlow, count: int) -> tuple[ProbeFinding, ...]:
    """The layer with the last gradient that is a number, and what bends the gradient before it."""
    reached = [layer for layer in flow.layers if 0 < float(layer.norms.median()) < math.inf]
    last = reached[-1].location if reached else flow.layers[0].location
    sentence = f"The gradient is lost to depth on {count} of {len(flow.faded)} points; the last of it is at"
    return (ProbeFinding(f"{sentence} {last.words}, {len(reached)} of {len(flow.layers)} layers down.", last),)


def _details(flow: DepthFlow) -> dict[str, Any]:
    change = float(flow.change.median())
    steps = len(flow.layers) - 1
    return {
        "log10_change": change,
        "factor_per_layer": 10 ** (change / steps) if steps and math.isfinite(change) else None,
        "bend": vars(flow.bend) | {"location": vars(flow.bend.location)} if flow.bend else None,
        "layers": [_row(layer) for layer in flow.layers],
    }


def _row(layer: Layer) -> dict[str, Any]:
    """Median, least and largest norm over the points."""
    low, median, high = (float(layer.norms.quantile(q)) for q in (0, 0.5, 1))
    return {"place": layer.location.words, "norm": median, "low": low, "high": high}


PROBE = documented_probe("layer-gradient-flow", measure, needs=("gradients",), docstring=__doc__)
