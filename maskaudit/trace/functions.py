"""Custom autograd Functions against central differences of their own forward."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from maskaudit.rng import PointRNG
from maskaudit.target import differentiate
from maskaudit.trace.behaviour import correlation
from maskaudit.trace.calls import tensors_of
from maskaudit.trace.flow import pairing
from maskaudit.trace.op_notes import FunctionCall
from maskaudit.trace.records import FunctionCheck
from maskaudit.verdict.limits import HONEST_BACKWARD, SMOOTH_FORWARD

#: Perturbation sizes in units of the standard deviation of the Function's input. The large ones are for
#: straight-through estimators, which are honest about the trend of a staircase and wrong about each step.
SCALES = (1.0, 0.3, 0.01)
#: Random directions that are compared.
DIRECTIONS = 32


def check_function(call: FunctionCall, seed: int = 0) -> FunctionCheck:
    """Compare ⟨v, f(a+hδ) − f(a−hδ)⟩ with 2h⟨fᵀ'(v), δ⟩ for random v and δ over the scales."""
    unchecked = FunctionCheck(call.function.__name__, call.location, None, "unchecked", False)
    arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in call.arguments)
    place = next((i for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.is_floating_point()), None)
    if place is None:
        return unchecked
    base = arguments[place]
    rng = PointRNG.create(seed, "function check", torch.arange(DIRECTIONS))
    spread = float(base.double().std()) if base.numel() > 1 else 1.0
    spread = spread if spread > 0 else 1.0
    with contextlib.suppress(Exception):  # foreign code, run in a way that it was not made for
        leaf = base.clone().requires_grad_(True)
        with torch.enable_grad():
            output = _apply(call, arguments, place, leaf)
        cotangents = rng.fork("v").normal(output.shape).to(output)
        directions = rng.fork("d").normal(base.shape).to(base)
        gradients = [_vjp(output, leaf, v) for v in cotangents]
        best: float | None = None
        finest: Tensor | None = None
        smooth = False
        for scale in SCALES:
            step = scale * spread
            measured = _differences(call, arguments, place, base, directions, cotangents, step)
            predicted = torch.stack(
                [2 * step * (g.double() * d.double()).sum() for g, d in zip(gradients, directions, strict=True)]
            )
            agreement = correlation(predicted, measured)
            best = agreement if best is None or (agreement is not None and agreement > best) else best
            finest = measured
        assert finest is not None
        double = _differences(call, arguments, place, base, directions, cotangents, 2 * SCALES[-1] * spread)
        smoothness = correlation(finest, double)
        smooth = smoothness is not None and smoothness > SMOOTH_FORWARD and float(finest.norm()) > 0
        if all(float(g.abs().max()) == 0 for g in gradients):
            return FunctionCheck(call.function.__name__, call.location, best, "zero", smooth)
        kind = "honest" if best is None or best >= HONEST_BACKWARD else "lying"
        return FunctionCheck(call.function.__name__, call.location, best, kind, smooth)  # type: ignore[arg-type]
    return unchecked


def _apply(call: FunctionCall, arguments: tuple[Any, ...], place: int, value: Tensor) -> Tensor:
    result = call.function.apply(*arguments[:place], value, *arguments[place + 1 :])
    return tensors_of(result)[0]


def _vjp(output: Tensor, leaf: Tensor, cotangent: Tensor) -> Tensor:
    if not output.requires_grad:
        return torch.zeros_like(leaf)
    with torch.enable_grad():
        total = pairing([(output, cotangent)])
    (gradient,) = differentiate(total, (leaf,), retain_graph=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


def _differences(
    call: FunctionCall, arguments: tuple[Any, ...], place: int, base: Tensor, directions: Tensor,
    cotangents: Tensor, step: float,
) -> Tensor:  # fmt: skip
    parts = []
    with torch.no_grad():
        for direction, cotangent in zip(directions, cotangents, strict=True):
            plus = _apply(call, arguments, place, base + step * direction)
            minus = _apply(call, arguments, place, base - step * direction)
            parts.append(((plus.double() - minus.double()) * cotangent.double()).sum())
    return torch.stack(parts)
