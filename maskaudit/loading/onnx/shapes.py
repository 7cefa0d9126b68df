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


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def gather_nd(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    """GatherND: the last axis of the index names places, behind `batch_dims` axes that go side by side."""
    axes = a.get("batch_dims", 0)
    if axes == 0:
        return x[tuple(index.unbind(-1))]
    flat = zip(x.flatten(0, axes - 1), index.flatten(0, axes - 1), strict=True)
    found = torch.stack([one[tuple(at.unbind(-1))] for one, at in flat])
    return found.view(*x.shape[:axes], *found.shape[1:])


def scatter_nd(a: Attributes, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """ScatterND: updates at places, or combined with what is there."""
    reduction, places = a.get("reduction", "none"), tuple(index.unbind(-1))
    if reduction in ("none", "add"):
        return x.index_put(places, updates, accumulate=reduction == "add")
    depth = index.shape[-1]
    sizes = x.shape[:depth]
    row = torch.zeros_like(places[0])
    for place_, size in zip(places, sizes, strict=True):
        row = row * size + torch.where(place_ < 0, place_ + size, place_)
    rest = math.prod(x.shape[depth:])
    flat = x.reshape(math.prod(sizes), rest)
    at = row.reshape(-1, 1).expand(-1, rest)
    return flat.scatter_reduce(0, at, updates.reshape(-1, rest), _REDUCTIONS[reduction]).view(x.shape)


def scatter_elements(a: Attributes, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """ScatterElements, and Scatter as it was called before."""
    axis, reduction = a.get("axis", 0), a.get("reduction", "none")
    index = torch.where(index < 0, index + x.shape[axis], index)
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


def tensor_scatter(a: Attributes, cache: Tensor, update: Tensor, starts: Tensor | None = None) -> Tensor:
    """TensorScatter: updates written along one axis from a place per batch entry on, around the end if circular."""
    axis = a.get("axis", -2) % cache.dim()
    first = torch.zeros(len(cache), dtype=torch.int64, device=cache.device) if starts is None else starts.long()
    at = first.view(-1, 1) + torch.arange(update.shape[axis], device=cache.device)
    if a.get("mode", "linear") == "circular":
        at = at % cache.shape[axis]
    shape = [len(cache) if i == 0 else update.shape[axis] if i == axis else 1 for i in range(cache.dim())]
    return cache.scatter(axis, at.view(shape).expand(update.shape), update)


def compress(a: Attributes, x: Tensor, condition: Tensor) -> Tensor:
    """Compress: what a constant condition keeps."""
    kept = [place_ for place_, keep in enumerate(ints(condition) or []) if keep]
    index = torch.tensor(kept, dtype=torch.int64, device=place(x))
    if a.get("axis") is None:
        return x.flatten().index_select(0, index)
    return x.index_select(a.get("axis"), index)


def reverse_sequence(a: Attributes, x: Tensor, lengths: Tensor) -> Tensor:
    """ReverseSequence: the first entries of every sequence backwards."""
    time, batch = a.get("time_axis", 0), a.get("batch_axis", 1)
    steps = torch.arange(x.shape[time], device=x.device).view(-1, 1)
    ends = lengths.view(1, -1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    index = index if time == 0 else index.T
    return (
        x.gather(time, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(x.shape))
        if {time, batch} == {0, 1}
        else _unsupported("ReverseSequence of other axes than the first two")
    )


def _unsupported(what: str) -> Tensor:
    raise ValueError(f"{what} is not supported")


def trilu(a: Attributes, x: Tensor, k: Tensor | None = None) -> Tensor:
    """Trilu: the upper or lower triangle."""
    return (torch.triu if a.get("upper", 1) else torch.tril)(x, int(number(k) or 0))


def concat(a: Attributes, *inputs: Tensor) -> Tensor:
    """Concat: the inputs joined along `axis`."""
    return torch.cat(inputs, dim=a.get("axis"))


def split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> Any:
    """Split: into parts of given or of equal size."""
    axis = a.get("axis", 0)
    wanted = ints(sizes if sizes is not None else a.get("split"))
    if a.get("num_outputs", a.outputs) != a.outputs:
        raise ValueError(f"Split into {a.get('num_outputs')} parts names {a.outputs} of them")
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
