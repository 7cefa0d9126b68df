"""Proofs that points are robust, for the zoo's models whose construction allows one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from maskaudit.networks.layers import SmoothedUnits

#: Relative enlargement of interval bounds that covers the rounding of a float32 forward pass many times over.
ROUNDING_SLACK = 1e-4


def worst_logits(model: nn.Module, x: Tensor, y: Tensor, eps: float, bounds: tuple[float, float]) -> Tensor:
    """Bounds on the logits (N, K) over the Linf ball: the lowest of class y, the highest of the others.

    Interval bound propagation with the readout folded into the margins (Gowal et al. 2018,
    section 3): row k is an upper bound of z_k − z_y, so column y is zero. Differentiable.

    Args:
        model: an `nn.Sequential` of convolutions, linear, flattening and monotone elementwise layers, a linear last.
        x: inputs (N, …); y: labels (N,); eps: radius, clipped to `bounds`.

    Raises:
        TypeError: for a layer whose interval arithmetic is not known.
    """
    low, high = (x - eps).clamp(*bounds), (x + eps).clamp(*bounds)
    layers = list(model.children())
    for layer in layers[:-1]:
        low, high = _through(layer, low, high)
    readout = layers[-1]
    if not isinstance(readout, nn.Linear):
        raise TypeError(f"interval bounds need a linear readout, got {type(readout).__name__}")
    rows = readout.weight.unsqueeze(0) - readout.weight[y].unsqueeze(1)
    centre, radius = (low + high) / 2, (high - low) / 2
    margins = torch.einsum("nkd,nd->nk", rows, centre) + torch.einsum("nkd,nd->nk", rows.abs(), radius)
    return margins + readout.bias - readout.bias[y].unsqueeze(1)


def interval_certificate(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Points (N,) proven correct everywhere in the Linf ball, inputs in [0, 1]; Gowal et al. 2018.

    Computed in float64, with slack for the rounding of the model's own float32 arithmetic.
    """
    with torch.no_grad():
        exact = _double(model)
        margins = worst_logits(exact, x.double(), y, eps * (1 + ROUNDING_SLACK), (0.0, 1.0))
        scale = exact(x.double()).abs().amax(1)
    others = margins.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
    return others < -ROUNDING_SLACK * scale


def smoothing_certificate(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Points (N,) proven correct everywhere in the L2 ball, for a network that is exactly smoothed (`SmoothedUnits`).

    A function with values in [0, 1] averaged over Gaussian noise of standard deviation σ changes
    its Φ⁻¹ by at most ‖δ‖₂ / σ (Salman et al. 2019, arXiv 1906.04584, lemma 2), so class y stays
    ahead while σ (Φ⁻¹(g_y) − Φ⁻¹(g_j)) / 2 > ε for all j (Cohen et al. 2019, theorem 1).
    """
    assert isinstance(model, SmoothedUnits)
    with torch.no_grad():
        quantiles = _double(model)(x.double())
    label = y.unsqueeze(1)
    rival = quantiles.scatter(1, label, -torch.inf).amax(1)
    return model.sigma * (quantiles.gather(1, label).squeeze(1) - rival) / 2 > eps * (1 + ROUNDING_SLACK)


def _double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double().eval()


def _through(layer: nn.Module, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Interval image of one layer."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        centre, radius = (low + high) / 2, (high - low) / 2
        middle = layer(centre)
        if isinstance(layer, nn.Linear):
            spread = nn.functional.linear(radius, layer.weight.abs())
        else:
            spread = nn.functional.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding)
        return middle - spread, middle + spread
    if isinstance(layer, nn.Flatten | nn.ReLU | nn.LeakyReLU | nn.Tanh | nn.Sigmoid):
        return layer(low), layer(high)
    raise TypeError(f"no interval arithmetic for {type(layer).__name__}")
