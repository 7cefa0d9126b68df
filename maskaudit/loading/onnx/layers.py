"""ONNX operators with windows, norms, images and quantised numbers; see `onnx_ops` for the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.loading.onnx.attributes import DTYPES, Attributes, Operator, ints, known


def _window(a: Attributes, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Strides, dilations and padding (before, after) per spatial axis of a convolution or pooling."""
    axes = len(kernel)
    strides, dilations = list(a.get("strides", [1] * axes)), list(a.get("dilations", [1] * axes))
    auto = a.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for axis in range(axes):
            size, reach = x.shape[2 + axis], dilations[axis] * (kernel[axis] - 1) + 1
            total = max(0, (math.ceil(size / strides[axis]) - 1) * strides[axis] + reach - size)
            half = (total + (auto == "SAME_LOWER")) // 2
            pads.append((half, total - half))
        return strides, dilations, pads
    given = list(a.get("pads", [0] * 2 * axes))
    return strides, dilations, list(zip(given[:axes], given[axes:], strict=True))


def _padded(x: Tensor, pads: list[tuple[int, int]], value: float) -> tuple[Tensor, list[int]]:
    """The input padded where torch cannot (uneven padding), and the padding that torch is to do."""
    if all(before == after for before, after in pads):
        return x, [before for before, _ in pads]
    return F.pad(x, [size for pair in reversed(pads) for size in pair], value=value), [0] * len(pads)


def conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    strides, dilations, pads = _window(a, x, w.shape[2:])
    x, padding = _padded(x, pads, 0.0)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[w.dim() - 2]
    return function(x, w, b, strides, padding, dilations, a.get("group", 1))


def conv_transpose(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    if a.get("output_shape") is not None or a.get("auto_pad", "NOTSET") != "NOTSET":
        raise ValueError("ConvTranspose with output_shape or auto_pad is not supported")
    strides, dilations, pads = _window(a, x, w.shape[2:])
    if any(before != after for before, after in pads):
        raise ValueError("ConvTranspose with uneven padding is not supported")
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[w.dim() - 2]
    extra = a.get("output_padding", [0] * len(strides))
    return function(x, w, b, strides, [p for p, _ in pads], extra, a.get("group", 1), dilations)


def max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a.get("kernel_shape")
    strides, dilations, pads = _window(a, x, kernel)
    if any(2 * before > size for (before, _), size in zip(pads, kernel, strict=True)):
        x, padding = F.pad(x, [size for pair in reversed(pads) for size in pair], value=-math.inf), [0] * len(pads)
    else:
        x, padding = _padded(x, pads, -math.inf)
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    return function(x, kernel, strides, padding, dilations, bool(a.get("ceil_mode", 0)))


def average_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a.get("kernel_shape")
    strides, dilations, pads = _window(a, x, kernel)
    if any(step != 1 for step in dilations):
        raise ValueError("AveragePool with dilations is not supported")
    uneven = any(before != after for before, after in pads)
    counted = bool(a.get("count_include_pad", 0))
    function: Operator = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    ceil = bool(a.get("ceil_mode", 0))
    if uneven and not counted:  # the mean over real pixels only: sums over shares of real pixels
        flat = [size for pair in reversed(pads) for size in pair]
        real = F.pad(torch.ones_like(x), flat)
        return function(F.pad(x, flat), kernel, strides, 0, ceil) / function(real, kernel, strides, 0, ceil)
    x, padding = _padded(x, pads, 0.0)
    return function(x, kernel, strides, padding, ceil, counted)


def pooled_by(function: Operator) -> Operator:
    def run(a: Attributes, x: Tensor) -> Tensor:
        result: Tensor = function(x, dim=list(range(2, x.dim())), keepdim=True)
        return result

    return run


def batch_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean.detach(), var.detach(), scale, bias, False, 0.0, a.get("epsilon", 1e-5))


def instance_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))


def layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = a.get("axis", -1) % x.dim()
    return F.layer_norm(
        x, x.shape[axis:], scale.expand(x.shape[axis:]), None if bias is None else bias.expand(x.shape[axis:]),
        a.get("epsilon", 1e-5),
    )  # fmt: skip


def group_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = a.get("num_groups")
    if len(scale) == groups != x.shape[1]:  # before opset 21: one entry per group
        scale, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, bias))
    return F.group_norm(x, groups, scale, bias, a.get("epsilon", 1e-5))


def local_response(a: Attributes, x: Tensor) -> Tensor:
    return F.local_response_norm(x, a.get("size"), a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0))


def resize(
    a: Attributes, x: Tensor, roi: Any = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    if a.opset < 11:
        scales = roi if roi is not None else scales
    mode, frame = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    if a.get("axes") is not None or a.get("antialias", 0) or x.dim() != 4:
        raise ValueError("Resize of something else than all axes of images, or with antialias, is not supported")
    factors = [1.0] if scales is None else [float(factor) for factor in known(scales).tolist()]
    target = (ints(sizes) or [])[2:] or [math.floor(n * f) for n, f in zip(x.shape[2:], factors[2:], strict=True)]
    if mode == "nearest":
        rounding = a.get("nearest_mode", "round_prefer_floor") if a.opset >= 11 else "floor"
        if frame in ("asymmetric", "half_pixel") and all(n % s == 0 for n, s in zip(target, x.shape[2:], strict=True)):
            return F.interpolate(x, target, mode="nearest")  # whole factors: all conventions agree
        if frame == "asymmetric" and rounding == "floor":
            return F.interpolate(x, target, mode="nearest")
        if frame == "half_pixel" and rounding in ("round_prefer_floor", "round_prefer_ceil"):
            return F.interpolate(x, target, mode="nearest-exact")
    elif mode in ("linear", "cubic") and frame in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        if mode == "cubic" and a.get("cubic_coeff_a", -0.75) != -0.75:
            raise ValueError("Resize with another cubic coefficient than -0.75 is not supported")
        name = {"linear": "bilinear", "cubic": "bicubic"}[mode]
        return F.interpolate(x, target, mode=name, align_corners=frame == "align_corners")
    raise ValueError(f"Resize with {mode} and {frame} is not supported")


def depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    block, (n, c, h, w) = a.get("blocksize"), x.shape
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    return x.view(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * block, w * block)


def space_to_depth(a: Attributes, x: Tensor) -> Tensor:
    block, (n, c, h, w) = a.get("blocksize"), x.shape
    parts = x.view(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, -1, h // block, w // block)


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Scales or offsets per channel, shaped to multiply `x`."""
    shape = [1] * x.dim()
    if values.dim() == 1 and values.numel() > 1:
        shape[axis % x.dim()] = -1
    return torch.reshape(values, shape)


def quantise(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = a.get("axis", 1)
    dtype = zero.dtype if zero is not None else DTYPES.get(a.get("output_dtype", 2), torch.uint8)
    shift = _along(zero, x, axis).to(x.dtype) if zero is not None else 0.0
    bounds = torch.iinfo(dtype)
    return torch.clamp(torch.round(x / _along(scale, x, axis)) + shift, bounds.min, bounds.max).to(dtype)


def dequantise(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = a.get("axis", 1)
    shift = _along(zero, x, axis).to(scale.dtype) if zero is not None else 0.0
    return (x.to(scale.dtype) - shift) * _along(scale, x, axis)
