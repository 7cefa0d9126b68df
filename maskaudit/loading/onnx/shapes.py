"""ONNX operators that move, pick, join and pad data or make data of sizes; see `onnx_ops` for the table."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.loading.onnx.attributes import Attributes, ints, number, place


def flatten(a: Attributes, x: Tensor) -> Tensor:
    """Flatten: the axes before `axis` as one, and those from it on as another."""
    axis = a.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def reshape(a: Attributes, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Reshape: a size of 0 keeps that of the input, unless `allowzero` is set."""
    wanted = ints(shape) if shape is not None else list(a.get("shape"))
    assert wanted is not None
    if not a.get("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return torch.reshape(x, wanted)


def transpose(a: Attributes, x: Tensor) -> Tensor:
    """Transpose: without `perm` the axes are reversed."""
    return x.permute(a.get("perm", list(range(x.dim()))[::-1]))


def squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Squeeze: all axes of size 1, or those named."""
    chosen = ints(axes) if axes is not None else a.get("axes")
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Unsqueeze: axes count in the result."""
    chosen = ints(axes if axes is not None else a.get("axes")) or []
    total = x.dim() + len(chosen)
    for axis in sorted(axis % total for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def slices(
    a: Attributes, x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Tensor:
    """Slice: also with negative steps."""
    first = ints(starts if starts is not None else a.get("starts")) or []
    last = ints(ends if ends is not None else a.get("ends")) or []
    along = ints(axes if axes is not None else a.get("axes")) or list(range(len(first)))
    stride = ints(steps) or [1] * len(first)
    for start, end, axis, step in zip(first, last, along, stride, strict=True):
        size = x.shape[axis]
        picked = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        if step > 0:
            index: list[Any] = [slice(None)] * x.dim()
            index[axis] = slice(picked.start, picked.stop, picked.step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.arange(picked.start, picked.stop, picked.step, device=x.device))
    return x


def gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    """Gather: along one axis; negative indices count from the end."""
    axis = a.get("axis", 0) % max(1, x.dim())
    index = torch.where(index < 0, index + x.shape[axis], index)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return torch.reshape(x.index_select(axis, index.flatten()), shape)


def gather_elements(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    """GatherElements: negative indices count from the end."""
    axis = a.get("axis", 0)
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


def concat(a: Attributes, *inputs: Tensor) -> Tensor:
    """Concat: along `axis`."""
    return torch.cat(inputs, dim=a.get("axis"))


def split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> Any:
    """Split: into parts of given or of equal size."""
    axis = a.get("axis", 0)
    wanted = ints(sizes if sizes is not None else a.get("split"))
    if wanted is None:
        each = math.ceil(x.shape[axis] / (a.get("num_outputs") or a.outputs))
        parts = x.split(each, dim=axis)
    else:
        parts = x.split(wanted, dim=axis)
    return parts[0] if a.outputs == 1 else parts


def expand(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """Expand: broadcast to a shape."""
    return x.expand(torch.broadcast_shapes(x.shape, ints(shape) or []))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def pad(a: Attributes, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    """Pad: in any mode; without amounts the input itself."""
    given = ints(pads if pads is not None else a.get("pads", a.get("paddings"))) or []
    along = ints(axes) or list(range(len(given) // 2))
    sizes = [(0, 0)] * x.dim()
    for position, axis in enumerate(along):
        sizes[axis % x.dim()] = (given[position], given[position + len(along)])
    while sizes and sizes[0] == (0, 0) and len(sizes) > 1:
        sizes = sizes[1:]
    flat = [size for pair in reversed(sizes) for size in pair]
    mode = _PAD_MODES[a.get("mode", "constant")]
    if not any(flat):
        return x
    if mode == "constant":
        return F.pad(x, flat, value=number(value if value is not None else a.get("value", 0.0)) or 0.0)
    return F.pad(x, flat, mode=mode)


def shape(a: Attributes, x: Tensor) -> Tensor:
    """Shape: the sizes as data."""
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end")], dtype=torch.int64, device=place(x))


def constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    """ConstantOfShape: float32 zeros unless a value is given."""
    value = a.get("value", torch.zeros(1))
    return value.to(shape.device).expand(ints(shape) or []).clone()


def arange(a: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    """Range: from start to limit in steps."""
    low, high, each = (number(item) for item in (start, limit, step))
    assert low is not None
    assert high is not None
    assert each is not None
    return torch.arange(low, high, each, dtype=start.dtype, device=start.device)
