"""Resize and Upsample: separable resampling by the coordinates and weights that the operator specification states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.loading.onnx.attributes import Attributes, ints, known

#: Longest axis of a result, and most weights along one axis: outputs times inputs.
MAX_LENGTH, MAX_WEIGHTS = 16_384, 2**22
_Weights = Callable[[float], list[float]]


def resize(
    a: Attributes, x: Tensor, roi: Any = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Resize: any axes, any mode, any coordinates; what torch does the same way is left to torch.

    Raises:
        ValueError: for a mode that the specification does not have, or too large a size.
    """
    if a.opset < 11:
        scales = roi if roi is not None else scales
    axes = [axis % x.dim() for axis in a.get("axes", range(x.dim()))]
    lengths = [x.shape[axis] for axis in axes]
    factors, targets = _sizes(a, lengths, scales, sizes)
    borders = _floats(roi) if a.opset >= 11 else []
    changed = [i for i, (n, m, f) in enumerate(zip(lengths, targets, factors, strict=True)) if (m, f) != (n, 1.0)]
    if _is_crop(a):
        changed = list(range(len(axes)))
    plain = _by_torch(a, x, [axes[i] for i in changed], [factors[i] for i in changed], [targets[i] for i in changed])
    if plain is not None:
        return plain
    for i in changed:
        span = (borders[i], borders[i + len(axes)]) if _is_crop(a) and borders else (0.0, 1.0)
        x = _along(a, x, axes[i], factors[i], targets[i], span)
    return x


def upsample(a: Attributes, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Upsample (until opset 9): Resize with asymmetric coordinates, to the floor."""
    factors = scales if scales is not None else torch.tensor(a.get("scales"))
    return resize(Attributes(10, 1, {"mode": a.get("mode", "nearest")}), x, factors)


def _is_crop(a: Attributes) -> bool:
    return a.get("coordinate_transformation_mode") == "tf_crop_and_resize"


def _floats(value: Tensor | None) -> list[float]:
    return [] if value is None else [float(item) for item in known(value).flatten().tolist()]


def _sizes(
    a: Attributes, lengths: Sequence[int], scales: Tensor | None, sizes: Tensor | None
) -> tuple[list[float], list[int]]:
    """Factor and length of the result per axis."""
    targets = ints(sizes)
    if not targets:
        factors = _floats(scales)
        return factors, [math.floor(n * f) for n, f in zip(lengths, factors, strict=True)]
    factors = [m / n for m, n in zip(targets, lengths, strict=True)]
    policy = a.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        one = min(factors) if policy == "not_larger" else max(factors)
        factors = [one] * len(factors)
        targets = [math.floor(one * n + 0.5) for n in lengths]
    return factors, targets


def _by_torch(
    a: Attributes, x: Tensor, axes: Sequence[int], factors: Sequence[float], targets: Sequence[int]
) -> Tensor | None:
    """The result where torch's interpolation of images is the same; None elsewhere."""
    exact = all(x.shape[axis] * f == m for axis, f, m in zip(axes, factors, targets, strict=True))
    if x.dim() != 4 or not exact or not set(axes) <= {2, 3} or a.get("antialias", 0) or a.get("exclude_outside", 0):
        return None
    mode, frame = a.get("mode", "nearest"), _frame(a)
    target = [dict(zip(axes, targets, strict=True)).get(axis, x.shape[axis]) for axis in (2, 3)]
    if mode == "nearest":
        rounding = _rounding(a)
        whole = all(f >= 1 and f.is_integer() for f in factors)
        alike = (frame == "asymmetric" and rounding == "floor") or (
            frame == "half_pixel" and rounding.startswith("round") and all(f != 1 for f in factors)
        )
        return F.interpolate(x, target, mode="nearest") if whole and alike else None
    if frame not in ("half_pixel", "align_corners") or a.get("cubic_coeff_a", -0.75) != -0.75:
        return None
    if frame == "align_corners" and 1 in target:
        return None
    name = {"linear": "bilinear", "cubic": "bicubic"}.get(mode)
    return None if name is None else F.interpolate(x, target, mode=name, align_corners=frame == "align_corners")


def _frame(a: Attributes) -> str:
    return str(a.get("coordinate_transformation_mode", "half_pixel" if a.opset >= 11 else "asymmetric"))


def _rounding(a: Attributes) -> str:
    return str(a.get("nearest_mode", "round_prefer_floor") if a.opset >= 11 else "floor")


def _along(a: Attributes, x: Tensor, axis: int, factor: float, target: int, span: tuple[float, float]) -> Tensor:
    """Resampled along one axis by a matrix of weights (target, length)."""
    length = x.shape[axis]
    if target > MAX_LENGTH or target * length > MAX_WEIGHTS:
        raise ValueError(f"Resize from {length} to {target} along one axis is larger than what is read")
    weights, taps = torch.zeros(target, length, dtype=torch.float64), _taps(a, factor)
    outside = []
    for place in range(target):
        at = _origin(_frame(a), place, factor, length, target, span)
        if _is_crop(a) and not 0 <= at <= length - 1:
            outside.append(place)
            continue
        floor = math.floor(at)
        ratio = at - floor if at != floor else 1.0
        found = taps(ratio)
        first = math.ceil(at) - len(found) // 2
        if a.get("exclude_outside", 0):
            found = [w if 0 <= first + i < length else 0.0 for i, w in enumerate(found)]
            found = [w / sum(found) for w in found]
        for i, weight in enumerate(found):
            weights[place, min(max(first + i, 0), length - 1)] += weight
    result = (x.movedim(axis, -1) @ weights.T.to(x.device, x.dtype)).movedim(-1, axis)
    if outside:
        fill = torch.zeros(target, dtype=torch.bool, device=x.device)
        fill[outside] = True
        shape = [-1 if i == axis else 1 for i in range(x.dim())]
        result = torch.where(fill.view(shape), a.get("extrapolation_value", 0.0), result)
    return result


def _origin(frame: str, place: int, factor: float, length: int, target: int, span: tuple[float, float]) -> float:
    """Where in the input an output lies."""
    wide = factor * length
    if frame == "align_corners":
        return 0.0 if wide == 1 else place * (length - 1) / (wide - 1)
    if frame == "asymmetric":
        return place / factor
    if frame == "tf_half_pixel_for_nn":
        return (place + 0.5) / factor
    if frame == "tf_crop_and_resize":
        first, last = span
        step = (last - first) / 2 if wide == 1 else place * (last - first) / (wide - 1)
        return (step + first) * (length - 1)
    if frame == "pytorch_half_pixel" and wide == 1:
        return -0.5
    middle = (place + 0.5) / factor - 0.5
    if frame == "half_pixel_symmetric":
        return middle + length / 2 * (1 - target / wide)
    if frame in ("half_pixel", "pytorch_half_pixel"):
        return middle
    raise ValueError(f"Resize has no coordinates {frame[:40]}")


def _taps(a: Attributes, factor: float) -> _Weights:
    """Weights of the neighbours of a place, from its distance to the one on the left, in (0, 1]."""
    mode, scale = a.get("mode", "nearest"), min(factor, 1.0) if a.get("antialias", 0) else 1.0
    if mode == "nearest":
        return _nearest(_rounding(a))
    if mode == "linear":
        return _spread(lambda t: max(0.0, 1 - abs(t)), 1, scale)
    if mode == "cubic":
        return _spread(_cubic(a.get("cubic_coeff_a", -0.75)), 2, scale)
    raise ValueError(f"Resize has no mode {str(mode)[:40]}")


def _nearest(rounding: str) -> _Weights:
    def right(ratio: float) -> bool:
        if ratio == 1:
            return True
        return {"round_prefer_floor": ratio > 0.5, "round_prefer_ceil": ratio >= 0.5, "floor": False, "ceil": True}[
            rounding
        ]

    return lambda ratio: [float(not right(ratio)), float(right(ratio))]


def _cubic(a: float) -> Callable[[float], float]:
    """Keys' kernel."""

    def kernel(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return ((a + 2) * t - (a + 3)) * t * t + 1
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a if t < 2 else 0.0

    return kernel


def _spread(kernel: Callable[[float], float], reach: int, scale: float) -> _Weights:
    """The kernel at the neighbours, stretched where the result is smaller; then the weights sum to 1."""
    first = math.floor(-reach / scale) + 1

    def weights(ratio: float) -> list[float]:
        found = [kernel((first + i - ratio) * scale) for i in range(2 - 2 * first)]
        return [w / sum(found) for w in found] if scale < 1 else found

    return weights
