"""The gradient against depth: its norm layer by layer from the output to the input, and what hides its true size.

Layers are the ops through which every way from the output to the input leads. In a network with branches or
residual paths these are where the ways meet, so that the whole gradient is seen at each: at the end of a residual
block, not inside it.

A backward pass is linear: twice the gradient at the output gives twice the gradient at every layer. Where it does
not, something clips, normalises or otherwise replaces the gradient, and the norms from there on are not those of
derivatives. Scales are powers of two, which round nothing.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from maskaudit.errors import GradientError
from maskaudit.results import Location
from maskaudit.target import Target
from maskaudit.target.preserve import preserved_random_state
from maskaudit.trace.branches import trunk
from maskaudit.trace.flow import arriving_norms, margin_cotangent
from maskaudit.trace.health import deciding_pair
from maskaudit.trace.op_notes import RecordedOp
from maskaudit.trace.passes import observe
from maskaudit.trace.scope import graph_visible
from maskaudit.trace.vocabulary import STRUCTURAL
from maskaudit.verdict.limits import FADED_SHARE, PROPORTIONAL


@dataclass(frozen=True)
class Layer:
    """One layer with the norms (N,) of the gradient of the margin with respect to what it made; float64."""

    location: Location
    norms: Tensor


@dataclass(frozen=True)
class Bend:
    """Where the backward pass is not linear.

    `layer` is the first in `DepthFlow.layers` that gets what is no derivative. `how` is "normalises" where what leaves
    has the same norm whatever arrives, else "clips".
    """

    layer: int
    location: Location
    how: Literal["normalises", "clips"]


@dataclass(frozen=True)
class DepthFlow:
    """The gradient from the output to the input.

    Attributes:
        layers: from the output to the input, the input itself last.
        bend: the first place, seen from the output, where the backward pass is not linear; what lies behind is unknown.
        faded: points (N,) at which the gradient is lost to depth, see `faded`.
    """

    layers: tuple[Layer, ...]
    bend: Bend | None
    faded: Tensor

    @property
    def change(self) -> Tensor:
        """Norm at the input over norm at the output (N,), as log10; −∞ where it is lost, NaN where none left."""
        return self.layers[-1].norms.log10() - self.layers[0].norms.log10()


def depth_flow(target: Target, x: Tensor, y: Tensor) -> DepthFlow | None:
    """Follow the gradient of the margin through the layers: one recorded pass and three backward passes.

    Args:
        target: the open target.
        x: inputs (N, …) in bounds; y: labels (N,).

    Returns:
        None where the output is not connected to the input in the autograd graph.

    Raises:
        GradientError: when the model fails where a gradient is asked for.
    """
    with preserved_random_state(), graph_visible():
        observer, scores = observe(target, x)
        raw = observer.raw
        if raw is None or not observer.live(raw):
            return None
        cotangent = margin_cotangent(raw, deciding_pair(target, scores, y))
        places = [observer.ops[index] for index in trunk(observer, raw)]
        info = torch.finfo(raw.dtype)
        step = 2.0 ** round(math.log2(info.max) / 4)
        norms = {}
        for scale in (1.0, step, 1 / step):
            arriving, gradient = arriving_norms(observer, [(raw, cotangent * scale)], len(x))
            target.count_backward(len(x))
            if gradient is None:
                raise GradientError(next(iter(observer.failed.values()), observer.failure) or "There is no gradient.")
            nothing = torch.zeros(len(x), dtype=torch.float64)
            leaf = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64).cpu()
            norms[scale] = torch.stack([*(arriving.get(op.index, nothing) for op in places), leaf])
    where = [*(op.location for op in places), Location("", "input")]
    shown = [at for at, op in enumerate(places) if op.name not in STRUCTURAL or at == 0] + [len(places)]
    layers = tuple(Layer(where[at], norms[1.0][at]) for at in shown)
    bend = _bend(norms, step, info, places)
    if bend is not None:
        bend = dataclasses.replace(bend, layer=bisect_left(shown, bend.layer))
    return DepthFlow(layers, bend, faded(norms[1.0], info, torch.finfo(observer.leaf.dtype)))


def faded(norms: Tensor, inside: torch.finfo, at_input: torch.finfo) -> Tensor:
    """Points (N,) at which a gradient with such norms (layers, N), the input's last, is lost to depth.

    At the input it is zero, too small to be a normal number, or not finite, and at the last layer that it reached it
    was already close to the smallest or the largest number: a single op that kills a sizeable gradient is another
    matter.

    Args:
        norms: from the output to the input.
        inside: the numbers that the model computes in; at_input: those of the input gradient.
    """
    seen = (norms > 0) & torch.isfinite(norms)
    last = (seen * torch.arange(1, len(norms) + 1)[:, None]).argmax(dim=0)
    reached = norms.gather(0, last[None])[0].log10()
    small, large = FADED_SHARE * math.log10(inside.tiny), FADED_SHARE * math.log10(inside.max)
    useless = ~seen[-1] | (norms[-1] < at_input.tiny)
    return seen[0] & useless & ((reached < small) | (reached > large))


def _bend(norms: dict[float, Tensor], step: float, info: torch.finfo, places: list[RecordedOp]) -> Bend | None:
    """The first row of norms (places and the input, N) that are not in proportion to the scale at some point.

    It is named by the custom Function that the gradient has just left, where it has left one; else by the layer itself,
    on whose result a hook may lie. Only norms count whose entries can neither have vanished nor overflown.
    """
    plain = torch.stack(list(norms.values()))
    plain = ((plain > math.sqrt(info.tiny)) & (plain < math.sqrt(info.max))).all(dim=0)
    ratios = {scale: (norms[scale] / norms[1.0]).where(plain, scale) for scale in (step, 1 / step)}
    bent = torch.stack([(ratio / scale - 1).abs() > PROPORTIONAL for scale, ratio in ratios.items()])
    at = next(iter(bent.any(dim=0).any(dim=1).nonzero().flatten().tolist()), None)
    if at is None:
        return None
    same = all(bool(((ratio[at] - 1).abs() <= PROPORTIONAL)[plain[at]].all()) for ratio in ratios.values())
    left = places[at - 1] if at and places[at - 1].kind == "function" else None
    here = places[at].location if at < len(places) else Location("", "input")
    return Bend(at, here if left is None else left.location, "normalises" if same else "clips")
