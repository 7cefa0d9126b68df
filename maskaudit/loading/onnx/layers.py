"""ONNX operators with windows, norms, images and quantised numbers; see `onnx_ops` for the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.loading.onnx.attributes import DTYPES, Attributes, ints, some


def window(a: Attributes, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[tuple[int, int]]]:
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


def padded(x: Tensor, pads: list[tuple[int, int]], value: float) -> tuple[Tensor, list[int]]:
    """The input padded where torch cannot (uneven padding), and the padding that torch is to do."""
    if all(before == after for before, after in pads):
        return x, [before for before, _ in pads]
    return F.pad(x, flat(pads), value=value), [0] * len(pads)


def flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Padding per axis in torch's order: the last axis first."""
    return [size for pair in reversed(pads) for size in pair]


def conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Conv, in one to three dimensions."""
    strides, dilations, pads = window(a, x, w.shape[2:])
    x, padding = padded(x, pads, 0.0)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[w.dim() - 2]
    return function(x, w, b, strides, padding, dilations, a.get("group", 1))


def conv_transpose(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """ConvTranspose: uneven padding, and that which gives a stated shape, is cut off afterwards."""
    kernel, axes = w.shape[2:], w.dim() - 2
    strides, dilations = list(a.get("strides", [1] * axes)), list(a.get("dilations", [1] * axes))
    extra = list(a.get("output_padding", [0] * axes))
    full = [s * (n - 1) + d * (k - 1) + 1 + e
            for n, s, d, k, e in zip(x.shape[2:], strides, dilations, kernel, extra, strict=True)]  # fmt: skip
    pads = _cut(a, full, [n * s for n, s in zip(x.shape[2:], strides, strict=True)])
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[axes]
    if all(before == after >= 0 for before, after in pads):
        return function(x, w, b, strides, [before for before, _ in pads], extra, a.get("group", 1), dilations)
    result = function(x, w, None, strides, 0, extra, a.get("group", 1), dilations)
    result = F.pad(result, [-size for size in flat(pads)])
    return result if b is None else result + b.view(-1, *[1] * axes)


def _cut(a: Attributes, full: Sequence[int], same: Sequence[int]) -> list[tuple[int, int]]:
    """What is cut off the full result, before and after, per axis."""
    auto, wanted = a.get("auto_pad", "NOTSET"), a.get("output_shape")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = same
    if wanted is None:
        given = list(a.get("pads", [0] * 2 * len(full)))
        return list(zip(given[: len(full)], given[len(full) :], strict=True))
    totals = [n - m for n, m in zip(full, list(wanted)[-len(full) :], strict=True)]
    halves = [total // 2 for total in totals]
    if auto == "SAME_UPPER":
        return [(half, total - half) for half, total in zip(halves, totals, strict=True)]
    return [(total - half, half) for half, total in zip(halves, totals, strict=True)]


def batch_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """BatchNormalization with the stored statistics."""
    return F.batch_norm(x, mean.detach(), var.detach(), scale, bias, False, 0.0, a.get("epsilon", 1e-5))


def instance_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))


def layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    """LayerNormalization, with mean and inverse deviation where the node asks for them."""
    axis = a.get("axis", -1) % x.dim()
    y = F.layer_norm(
        x, x.shape[axis:], scale.expand(x.shape[axis:]), None if bias is None else bias.expand(x.shape[axis:]),
        a.get("epsilon", 1e-5),
    )  # fmt: skip
    if a.outputs == 1:
        return y
    along = list(range(axis, x.dim()))
    mean = x.mean(along, keepdim=True)
    return some(a, y, mean, ((x - mean).square().mean(along, keepdim=True) + a.get("epsilon", 1e-5)).rsqrt())


def mean_variance_norm(a: Attributes, x: Tensor) -> Tensor:
    """MeanVarianceNormalization: mean 0 and deviation 1 over the axes."""
    axes = a.get("axes", [0, 2, 3])
    x = x - x.mean(axes, keepdim=True)
    return x / (x.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def lp_norm(a: Attributes, x: Tensor) -> Tensor:
    """LpNormalization: divided by the p-norm along one axis; zeros stay zeros."""
    norm = x.norm(a.get("p", 2), dim=a.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


def grid_sample(a: Attributes, x: Tensor, grid: Tensor) -> Tensor:
    """GridSample of images and volumes."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(a.get("mode", "linear"), a.get("mode", "linear"))
    return F.grid_sample(x, grid, mode, a.get("padding_mode", "zeros"), bool(a.get("align_corners", 0)))


def col2im(a: Attributes, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    """Col2Im: blocks added up into images, as `fold` does for two axes with even padding."""
    size, kernel = ints(image) or [], ints(block) or []
    given = a.get("pads", [0] * 2 * len(size))
    if len(size) != 2:
        raise ValueError("Col2Im of something else than images is not supported")
    whole = [n + given[i] + given[i + 2] for i, n in enumerate(size)]
    result = F.fold(x, tuple(whole), tuple(kernel), a.get("dilations", 1), 0, a.get("strides", 1))
    return result[..., given[0] : given[0] + size[0], given[1] : given[1] + size[1]]


def group_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """GroupNormalization."""
    groups = a.get("num_groups")
    if len(scale) == groups != x.shape[1]:  # before opset 21: one entry per group
        scale, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, bias))
    return F.group_norm(x, groups, scale, bias, a.get("epsilon", 1e-5))


def local_response(a: Attributes, x: Tensor) -> Tensor:
    """LRN: normalisation over neighbouring channels."""
    return F.local_response_norm(x, a.get("size"), a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0))


def depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    """DepthToSpace: channels become blocks of pixels."""
    block, (n, c, h, w) = a.get("blocksize"), x.shape
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    return x.view(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * block, w * block)


def space_to_depth(a: Attributes, x: Tensor) -> Tensor:
    """SpaceToDepth: blocks of pixels become channels."""
    block, (n, c, h, w) = a.get("blocksize"), x.shape
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, block)
    parts = x.view(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, -1, h // block, w // block)


def qlinear_conv(
    a: Attributes, x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor, b: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """QLinearConv: a convolution of what the whole numbers stand for, rounded to whole numbers again."""
    weights = _real(w, w_scale, w_zero, 0)
    bias = None if b is None else b.to(w_scale.dtype) * x_scale * w_scale
    return quantise(a, conv(a, _real(x, x_scale, x_zero, 1), weights, bias), y_scale, y_zero)


def qlinear_matmul(
    a: Attributes, x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor,
    y_scale: Tensor, y_zero: Tensor,
) -> Tensor:  # fmt: skip
    """QLinearMatMul: a product of what the whole numbers stand for, rounded to whole numbers again."""
    return quantise(a, _real(x, x_scale, x_zero, -2) @ _real(w, w_scale, w_zero, -1), y_scale, y_zero)


def conv_integer(
    a: Attributes, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """ConvInteger: a convolution of whole numbers."""
    return conv(a, _shifted(x, x_zero, 1), _shifted(w, w_zero, 0)).to(torch.int32)


def matmul_integer(
    a: Attributes, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """MatMulInteger: a product of whole numbers."""
    return (_shifted(x, x_zero, -2) @ _shifted(w, w_zero, -1)).to(torch.int32)


def _real(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    return dequantise(Attributes(1, 1, {"axis": axis}), x, scale, zero)


def _shifted(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Whole numbers less their zero point, in a type whose sums of products are exact."""
    return x.double() if zero is None else x.double() - _along(zero, x, axis).double()


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Scales or offsets per channel, shaped to multiply `x`."""
    shape = [1] * x.dim()
    if values.dim() == 1 and values.numel() > 1:
        shape[axis % x.dim()] = -1
    return torch.reshape(values, shape)


def quantise(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """QuantizeLinear: real numbers to whole ones on a grid."""
    axis = a.get("axis", 1)
    dtype = zero.dtype if zero is not None else DTYPES.get(a.get("output_dtype", 2), torch.uint8)
    shift = _along(zero, x, axis).to(x.dtype) if zero is not None else 0.0
    bounds = torch.iinfo(dtype)
    return torch.clamp(torch.round(x / _along(scale, x, axis)) + shift, bounds.min, bounds.max).to(dtype)


def dequantise(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """DequantizeLinear: the real numbers that whole ones on a grid mean."""
    axis = a.get("axis", 1)
    shift = _along(zero, x, axis).to(scale.dtype) if zero is not None else 0.0
    return (x.to(scale.dtype) - shift) * _along(scale, x, axis)
