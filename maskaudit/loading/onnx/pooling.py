"""ONNX pooling: torch's own where it does the same, else sums over windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.loading.onnx.attributes import Attributes, Operator, ints
from maskaudit.loading.onnx.layers import flat, padded, window

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN: dict[int, Operator] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_SUM: dict[int, Operator] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def max_pool(a: Attributes, x: Tensor) -> Any:
    """MaxPool, with the places of the maxima where the node asks for them."""
    kernel = a.get("kernel_shape")
    strides, dilations, pads = window(a, x, kernel)
    ceil = bool(a.get("ceil_mode", 0))
    if a.outputs == 1:
        wide = any(2 * before > size for (before, _), size in zip(pads, kernel, strict=True))
        x, padding = (F.pad(x, flat(pads), value=-math.inf), 0) if wide else padded(x, pads, -math.inf)
        return _MAX[len(kernel)](x, kernel, strides, padding, dilations, ceil)
    if any(before != after for before, after in pads):
        raise ValueError("MaxPool with uneven padding and places is not supported")
    found, places = _MAX[len(kernel)](x, kernel, strides, [p for p, _ in pads], dilations, ceil, return_indices=True)
    plane = math.prod(x.shape[2:])
    if a.get("storage_order", 0):
        places = _transposed(places, x.shape[2:])
    first = torch.arange(x.shape[0] * x.shape[1], device=places.device).view(x.shape[0], x.shape[1]) * plane
    return found, places + first.view(*first.shape, *[1] * len(kernel))


def _transposed(places: Tensor, sizes: Sequence[int]) -> Tensor:
    """Places in a plane counted by its last axis first, counted by its first axis first."""
    result, step, rest = torch.zeros_like(places), math.prod(sizes), places
    for size in reversed(sizes):
        step //= size
        result, rest = result + rest % size * step, rest // size
    return result


def max_unpool(a: Attributes, x: Tensor, places: Tensor, shape: Tensor | None = None) -> Tensor:
    """MaxUnpool: each value at its place, zeros elsewhere."""
    kernel = a.get("kernel_shape")
    axes = len(kernel)
    strides, pads = a.get("strides", [1] * axes), a.get("pads", [0] * 2 * axes)
    natural = [
        (n - 1) * s - pads[i] - pads[i + axes] + k
        for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    ]
    target = [*x.shape[:2], *natural]
    wanted = ints(shape) or target
    total = math.prod(target)
    result = torch.zeros(total, dtype=x.dtype, device=x.device).scatter(0, places.flatten(), x.flatten()).view(target)
    return F.pad(result, flat([(0, m - n) for n, m in zip(target, wanted, strict=True)]))


def average_pool(a: Attributes, x: Tensor) -> Tensor:
    """AveragePool: over the real pixels, or over the padding too."""
    kernel = a.get("kernel_shape")
    strides, dilations, pads = window(a, x, kernel)
    counted, ceil = bool(a.get("count_include_pad", 0)), bool(a.get("ceil_mode", 0))
    usual = all(step == 1 for step in dilations) and all(
        before == after and 2 * before <= size for (before, after), size in zip(pads, kernel, strict=True)
    )
    if usual:
        return _MEAN[len(kernel)](x, kernel, strides, [p for p, _ in pads], ceil, counted)
    real = torch.ones_like(x[:1, :1])
    real = F.pad(real, flat(pads), value=1.0 if counted else 0.0)
    return _sums(F.pad(x, flat(pads)), kernel, strides, dilations, ceil) / _sums(real, kernel, strides, dilations, ceil)


def lp_pool(a: Attributes, x: Tensor) -> Tensor:
    """LpPool: the p-norm of every window."""
    kernel, p = a.get("kernel_shape"), a.get("p", 2)
    strides, dilations, pads = window(a, x, kernel)
    sums = _sums(F.pad(x.abs().pow(p), flat(pads)), kernel, strides, dilations, bool(a.get("ceil_mode", 0)))
    return sums.pow(1 / p)


def pooled_by(function: Operator) -> Operator:
    """Global pooling over all axes behind the channels."""

    def run(a: Attributes, x: Tensor) -> Tensor:
        return function(x, dim=list(range(2, x.dim())), keepdim=True)

    return run


def global_lp_pool(a: Attributes, x: Tensor) -> Tensor:
    """GlobalLpPool: the p-norm over all axes behind the channels."""
    p = a.get("p", 2)
    return x.abs().pow(p).sum(dim=list(range(2, x.dim())), keepdim=True).pow(1 / p)


def _sums(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], ceil: bool) -> Tensor:
    """Sums over windows (N, C, …); with `ceil` a last window may reach beyond the end."""
    if ceil:
        spare = []
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            reach = d * (k - 1) + 1
            windows = math.ceil((n - reach) / s) + 1
            spare.append((0, max(0, (windows - 1) * s + reach - n) if (windows - 1) * s < n else 0))
        x = F.pad(x, flat(spare))
    planes = x.reshape(-1, 1, *x.shape[2:])
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    sums = _SUM[len(kernel)](planes, ones, None, strides, 0, dilations)
    return sums.view(*x.shape[:2], *sums.shape[2:])
