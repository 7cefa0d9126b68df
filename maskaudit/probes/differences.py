"""Central differences of the logit margin, what a gradient predicts for them, and what rounding alone can change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskaudit.attacks.losses import targeted_margin
from maskaudit.probes.interface import ProbeContext
from maskaudit.sums import column
from maskaudit.threat import per_point_norm

#: Random directions per point.
DIRECTIONS = 12
#: A point counts at a scale when the changes are at least this many times what rounding can do:
#: the noise then lowers a perfect cosine by less than 1/800.
SIGNAL = 20.0
#: What rounding the four scores of a difference to float32 can add up to, in units in the last place of
#: the largest score; a floor in addition to the measured noise, which sees the rounding inside the network.
SCORE_ULPS = 2


def unit_directions(context: ProbeContext) -> Tensor:
    """Random directions (K, N, …) of length 1 in the threat norm: signs of random size for Linf, spheres for L2.

    Linf entries have random magnitudes in [½, 1], so that a ripple of one wavelength does not
    answer every coordinate alike.
    """
    shape = tuple(context.x.shape[1:])
    directions = []
    for k in range(DIRECTIONS):
        if context.threat.norm == "Linf":
            size = 0.5 + 0.5 * context.rng.fork("size").uniform(shape, step=k)
            directions.append(context.rng.fork("sign").signs(shape, step=k) * size)
        else:
            normal = context.rng.fork("normal").normal(shape, step=k)
            directions.append(normal / column(per_point_norm(normal), normal))
    return torch.stack(directions).to(context.x)


def base_points(context: ProbeContext, directions: Tensor, step: float) -> Tensor:
    """A random point near each x (N, …), inside the bounds with room for `step` along every direction.

    The offset has size ε/2: pixels that sit on a grid or exactly on a bound would otherwise all
    meet the same phase of a ripple or the kink of a clip.
    """
    x, threat = context.x, context.threat
    noise = context.rng.fork("base")
    shape = tuple(x.shape[1:])
    if threat.norm == "Linf":
        offset = (2 * noise.uniform(shape) - 1).to(x) * (threat.eps / 2)
    else:
        normal = noise.normal(shape).to(x)
        offset = normal / column(per_point_norm(normal), normal) * (threat.eps / 2)
    low, high = threat.bounds
    offset = offset.clamp(-(high - low) / 4, (high - low) / 4)
    room = directions.abs().amax(dim=0) * step
    return torch.minimum(torch.maximum(x + offset, low + room), high - room)


def margin_differences(
    context: ProbeContext, base: Tensor, rival: Tensor, moves: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Change of the margin over central steps, and what the gradient predicts for the exact float32 steps taken.

    Args:
        base: (N, …); rival: class (N,) that the margin is measured against; moves: (K, N, …).
        gradient: of that margin at `base`, (N, …), float64.

    Returns:
        Both (K, N) in float64.
    """
    count = len(moves)
    ahead, behind = context.threat.clamp(base + moves), context.threat.clamp(base - moves)
    scores = context.target.scores(torch.cat([ahead, behind]).flatten(0, 1)).unflatten(0, (2 * count, len(base)))
    margins = torch.stack([_margin(part, context.y, rival) for part in scores])
    predicted = (ahead.double() - behind.double()).mul_(gradient).flatten(2).sum(dim=2)
    return margins[:count] - margins[count:], predicted


def rounding_noise(context: ProbeContext, base: Tensor, rival: Tensor, scores: Tensor) -> Tensor:
    """What rounding alone can change the margin by, (N,): measured by moving the input by one unit in the last place.

    The measurement sees rounding inside the network and any randomness from call to call. A model with
    half-precision weights rounds inputs and scores to that precision.
    """
    exact = context.target.form.score_type == torch.float64
    unit = torch.finfo(torch.float64).eps if exact else model_rounding(context.target.model)
    floor = SCORE_ULPS * unit * scores.double().abs().amax(dim=1)
    here = _margin(scores, context.y, rival)
    for k in range(2):
        sign = context.rng.fork("ulp").signs(tuple(base.shape[1:]), step=k).to(base)
        nearby = context.threat.clamp(base * (1 + sign * unit))
        there = _margin(context.target.scores(nearby), context.y, rival)
        floor = torch.maximum(floor, (there - here).abs())
    return floor


def model_rounding(model: object) -> float:
    """Relative rounding of inputs and scores: a unit of float32, or half a unit of half-precision weights."""
    full = torch.finfo(torch.float32).eps
    if not isinstance(model, nn.Module):
        return full
    kept = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return max([full, *(torch.finfo(dtype).eps / 2 for dtype in kept)])


def agreement(measured: Tensor, predicted: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine over directions per point, and which points rise above the noise.

    Args:
        measured, predicted: changes of the margin (K, N), float64; noise: (N,).

    Returns:
        Cosine (N,), 0 where exactly one side is flat, and bool (N,).
    """
    size, expected = measured.square().mean(dim=0).sqrt(), predicted.square().mean(dim=0).sqrt()
    usable = torch.maximum(size, expected) > SIGNAL * noise
    product = (measured / size.clamp_min(1e-300) * (predicted / expected.clamp_min(1e-300))).mean(dim=0)
    return torch.where((size > 0) & (expected > 0), product, torch.zeros_like(product)), usable


def _margin(scores: Tensor, y: Tensor, rival: Tensor) -> Tensor:
    return targeted_margin(scores.double(), y, rival)
