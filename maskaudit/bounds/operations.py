"""How torch's operations are written as affine maps and activations; an operation that is missing has no bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.bounds.network import Map, Network, Step, UnboundableError


class Ref:
    """The result of a step, by its number."""

    def __init__(self, number: int) -> None:
        self.number = number


class Folded(Ref):
    """A result (n, k, …) that the model holds as (n·k, …), as it does for a linear layer on the last of many axes."""


class Builder:
    """Collects the steps of a network whose input has `shape` (n, …)."""

    def __init__(self, shape: torch.Size) -> None:
        self.batch = shape[0]
        self.steps = [Step("input", (), lambda x: x, lambda x: x, torch.Size(shape[1:]))]

    def affine(self, name: str, call: Map, widen: Map, *reads: Ref, terms: int = 1) -> Ref:
        """Append an affine operation on the results that it reads; its own result is returned."""
        shape = self._shape(call, reads)
        zeros = [torch.zeros((1, *self.steps[read.number].shape), dtype=torch.float64) for read in reads]
        numbers = tuple(read.number for read in reads)
        return self._add(Step(name, numbers, call, widen, shape, terms, constant=call(*zeros)))

    def activation(self, name: str, call: Map, read: Ref) -> Ref:
        """Append an elementwise activation; its result is returned."""
        return self._add(Step(name, (read.number,), call, None, self.steps[read.number].shape))

    def hull(self, result: Ref, function: Map, *sources: Ref) -> Ref:
        """Say that a result rises with its sources and how."""
        known = (tuple(source.number for source in sources), function)
        self.steps[result.number] = replace(self.steps[result.number], hull=known)
        return result

    def finished(self, result: Ref, finish: Map) -> Network:
        """The network with this result as its output."""
        if len(self.steps[result.number].shape) != 1:
            raise UnboundableError("its answers are not class scores")
        identity = lambda x: x  # noqa: E731
        last = self.affine("output", identity, identity, result)
        return Network(tuple(self.steps[: last.number + 1]), finish)

    def _shape(self, call: Map, reads: Sequence[Ref]) -> torch.Size:
        tried = [torch.zeros((self.batch, *self.steps[r.number].shape), dtype=torch.float64) for r in reads]
        shape = call(*tried).shape
        if not shape or shape[0] != self.batch:
            raise UnboundableError("it moves the axis of the points")
        return torch.Size(shape[1:])

    def _add(self, step: Step) -> Ref:
        self.steps.append(step)
        return Ref(len(self.steps) - 1)


Handler = Callable[..., Any]


def _moved(build: Builder, op: Any, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    """An operation whose results are sums of coordinates with weights that are not negative."""
    kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "memory_format", "device", "layout")}
    call = partial(_with, op, args, kwargs)
    return build.affine(op.__name__, call, call, x, terms=_pooled(build, op, x))


def _with(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
    return op(x, *args, **kwargs)


def _pooled(build: Builder, op: Any, x: Ref) -> int:
    return build.steps[x.number].shape.numel() if op.__name__.startswith(("mean", "sum", "_adaptive", "avg")) else 1


def _sized(build: Builder, op: Any, x: Ref, size: Sequence[int], **kwargs: Any) -> Ref:
    """A view or an expansion, whose first size is the number of points, or that times the sizes of the next axes."""
    shape = build.steps[x.number].shape
    folded = shape[0] if shape and type(x) is Ref else 0
    for length in shape[1:-1]:
        folded *= length if folded * build.batch != size[0] else 1
    if folded > 1 and size[0] == folded * build.batch and -1 not in size:
        return Folded(_sized(build, op, x, [build.batch, folded, *size[1:]]).number)
    if not size or size[0] not in (build.batch, -1):
        raise UnboundableError("it moves the axis of the points")
    call = lambda x: op(x, [len(x), *size[1:]])  # noqa: E731
    return build.affine(op.__name__, call, call, x)


def _same(build: Builder, op: Any, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    dtype = kwargs.get("dtype")
    if dtype not in (None, torch.float32, torch.float64):
        raise UnboundableError(f"it computes in {str(dtype).removeprefix('torch.')}")
    return x


def _like(value: float | None, build: Builder, op: Any, x: Ref, *args: Any, **kwargs: Any) -> Tensor:
    """A constant of the shape of data; None: the next argument says which."""
    fill = args[0] if value is None else value
    return torch.full((build.batch, *build.steps[x.number].shape), fill, dtype=torch.float64)


def _padded(build: Builder, op: Any, x: Ref, pad: Sequence[int], value: float = 0.0) -> Ref:
    call = lambda x: F.pad(x, list(pad), value=value)  # noqa: E731
    return build.affine("pad", call, lambda x: F.pad(x, list(pad)), x)


def _cat(build: Builder, op: Any, parts: Sequence[Ref | Tensor], dim: int = 0) -> Ref:
    held = [part for part in parts if isinstance(part, Ref)]
    constants = [_fixed(part, build) if isinstance(part, Tensor) else None for part in parts]

    def joined(scale: float, *values: Tensor) -> Tensor:
        rest, n = iter(values), len(values[0])
        return torch.cat([next(rest) if c is None else scale * c.expand(n, *c.shape[1:]) for c in constants], dim)

    return build.affine("cat", partial(joined, 1.0), partial(joined, 0.0), *held)


def _split(build: Builder, op: Any, x: Ref, *args: Any, **kwargs: Any) -> tuple[Ref, ...]:
    """Parts along an axis, each a result of its own."""
    call = partial(_with, op, args, kwargs)
    parts = len(call(torch.zeros((build.batch, *build.steps[x.number].shape))))
    picks = [lambda p, place=place: call(p)[place] for place in range(parts)]
    return tuple(build.affine("split", pick, pick, x) for pick in picks)


def _sum(sign: float, build: Builder, op: Any, a: Any, b: Any, alpha: float = 1.0) -> Ref:
    """a + sign·alpha·b, either of which may be a constant."""
    factor = sign * alpha
    if isinstance(a, Ref) and isinstance(b, (int, float)) and not b:
        return a
    if isinstance(a, Ref) and isinstance(b, Ref):
        return build.affine("add", lambda p, q: p + factor * q, lambda p, q: p + abs(factor) * q, a, b, terms=2)
    if isinstance(a, Ref):
        fixed = _fixed(b, build)
        return build.affine("add", lambda p: p + factor * fixed, lambda p: p + 0 * fixed, a, terms=2)
    fixed = _fixed(a, build)
    return build.affine("add", lambda q: fixed + factor * q, lambda q: abs(factor) * q + 0 * fixed, b, terms=2)


def _rsub(build: Builder, op: Any, a: Ref, b: Any, alpha: float = 1.0) -> Ref:
    return _sum(-1.0, build, op, b, a, alpha)


def _fixed(value: Any, build: Builder) -> Any:
    """A constant that no point's place in the batch depends on."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.dim() and len(value) == build.batch:
        if not bool((value == value[:1]).all()):
            raise UnboundableError("its constants differ from point to point")
        return value[:1].double()
    return value.double()


def _scaled(build: Builder, op: Any, a: Any, b: Any) -> Ref:
    if isinstance(a, Ref) and isinstance(b, Ref):
        raise UnboundableError("it multiplies data with data")
    x, factor = (a, _fixed(b, build)) if isinstance(a, Ref) else (b, _fixed(a, build))
    if isinstance(factor, float) and factor == 1:
        return x
    size = factor.abs() if isinstance(factor, Tensor) else abs(factor)
    return build.affine("mul", lambda p: p * factor, lambda p: p * size, x)


def _divided(build: Builder, op: Any, a: Any, b: Any, **kwargs: Any) -> Ref:
    if kwargs.get("rounding_mode") is not None or not isinstance(a, Ref) or isinstance(b, Ref):
        raise UnboundableError("it divides by data or rounds")
    return _scaled(build, op, a, 1 / _fixed(b, build))


def _linear(build: Builder, op: Any, x: Ref, weight: Tensor, bias: Any = 0.0) -> Ref:
    """x W + b with W (in, out)."""
    if not isinstance(weight, Tensor) or isinstance(x, Tensor) or isinstance(bias, Ref):
        raise UnboundableError("it multiplies data with data")
    size = weight.abs()
    result = build.affine("linear", lambda p: p @ weight + bias, lambda p: p @ size, x, terms=len(weight) + 1)
    return Folded(result.number) if isinstance(x, Folded) else result


def _addmm(build: Builder, op: Any, bias: Any, x: Ref, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Ref:
    if isinstance(bias, Ref):
        raise UnboundableError("it multiplies data with data")
    return _linear(build, op, x, weight * alpha, bias * beta)


def _convolution(
    build: Builder, op: Any, x: Ref, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, *rest: Any,
) -> Ref:  # fmt: skip
    if isinstance(weight, Ref) or isinstance(bias, Ref):
        raise UnboundableError("it multiplies data with data")
    settings = (stride, padding, dilation, transposed, output_padding, groups)
    convolve: Map = torch.ops.aten.convolution
    terms = (weight[:, 0] if transposed else weight[0]).numel() + 1
    size = weight.abs()
    return build.affine(
        "conv",
        lambda p: convolve(p, weight, bias, *settings),
        lambda p: convolve(p, size, None, *settings),
        x,
        terms=terms,
    )


def _batch_norm(build: Builder, op: Any, x: Ref, weight: Any, bias: Any, mean: Tensor, var: Tensor, *rest: Any) -> Any:
    """Normalisation by stored statistics: `rest` is (training, momentum, eps), or (momentum, eps)."""
    if len(rest) >= 3 and rest[0] is True:
        raise UnboundableError("it normalises by the statistics of the batch")
    scale = (var + rest[-1]).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    axes = (1, -1, *[1] * (len(build.steps[x.number].shape) - 1))
    factor, shift, size = scale.view(axes), shift.view(axes), scale.abs().view(axes)
    return (build.affine("batch_norm", lambda p: p * factor + shift, lambda p: p * size, x, terms=8),)


def _relu(build: Builder, op: Any, x: Ref) -> Ref:
    return build.activation("relu", torch.relu, x)


def _smooth(name: str, call: Map, build: Builder, op: Any, x: Ref) -> Ref:
    return build.activation(name, call, x)


def _leaky(build: Builder, op: Any, x: Ref, slope: Any = 0.01) -> Ref:
    """slope·x + (1 − slope)·relu(x), for slopes between 0 and 1."""
    if isinstance(slope, Ref):
        raise UnboundableError("it multiplies data with data")
    slope = torch.as_tensor(slope, dtype=torch.float64)
    if not bool(((slope >= 0) & (slope <= 1)).all()):
        raise UnboundableError("a leaky rectifier has a slope outside [0, 1]")
    result = build.affine(
        "leaky_relu", *(lambda p, q: slope * p + (1 - slope) * q,) * 2, x, _relu(build, op, x), terms=2
    )
    return build.hull(result, lambda p: torch.maximum(p, slope * p), x)


def _clamp(build: Builder, op: Any, x: Ref, low: Any = None, high: Any = None) -> Ref:
    """low + relu(x − low) − relu(x − high)."""
    if isinstance(low, (Ref, Tensor)) or isinstance(high, (Ref, Tensor)):
        raise UnboundableError("it clamps to data")
    if low is not None and high is not None and low > high:
        raise UnboundableError("it clamps to an empty interval")
    if low is None and high is None:
        return x
    if low is None:  # x − relu(x − high)
        above = _relu(build, op, _sum(-1.0, build, op, x, high))
        result = _sum(-1.0, build, op, x, above)
    else:
        result = _sum(1.0, build, op, _relu(build, op, _sum(-1.0, build, op, x, low)), low)
        if high is not None:
            result = _sum(-1.0, build, op, result, _relu(build, op, _sum(-1.0, build, op, x, high)))
    return build.hull(result, lambda p: p.clamp(low, high), x)


def _hardtanh(build: Builder, op: Any, x: Ref, low: float = -1.0, high: float = 1.0) -> Ref:
    return _clamp(build, op, x, low, high)


def _larger(build: Builder, op: Any, a: Any, b: Any) -> Ref:
    """max(a, b) = a + relu(b − a)."""
    a, b = (a, b) if isinstance(a, Ref) else (b, a)
    over = _relu(build, op, _sum(-1.0, build, op, b, a))
    return _sum(1.0, build, op, a, over)


def _maximum(build: Builder, op: Any, a: Any, b: Any) -> Ref:
    if not (isinstance(a, Ref) and isinstance(b, Ref)):
        return _larger(build, op, a, b)
    return build.hull(_larger(build, op, a, b), torch.maximum, a, b)


def _minimum(build: Builder, op: Any, a: Any, b: Any) -> Ref:
    """−max(−a, −b)."""
    minus = [_scaled(build, op, part, -1.0) if isinstance(part, Ref) else -part for part in (a, b)]
    return _scaled(build, op, _maximum(build, op, *minus), -1.0)


def _amax(build: Builder, op: Any, x: Ref, axes: Sequence[int] = (), keepdim: bool = False) -> Ref:
    """The largest along axes, of whose halves the larger is taken until one place is left."""
    places = len(build.steps[x.number].shape) + 1
    chosen = {axis % places for axis in axes} or set(range(places))
    for axis in sorted(chosen, reverse=True):
        while axis and (size := build.steps[x.number].shape[axis - 1]) > 1:
            half = size // 2
            first, second, *odd = _split(build, torch.split, x, [half, half, *[1] * (size % 2)], axis)
            larger = _maximum(build, op, first, second)
            x = _cat(build, op, [larger, *odd], axis) if odd else larger
        x = x if keepdim else _moved(build, torch.ops.aten.squeeze.dim, x, axis)
    return x


def _logit(build: Builder, op: Any, x: Ref, eps: float | None = None) -> Ref:
    """The reverse of a sigmoid: what entered it."""
    if build.steps[x.number].name != "sigmoid":
        raise UnboundableError("it takes the logit of what is not a sigmoid")
    return Ref(build.steps[x.number].reads[0])


def _abs(build: Builder, op: Any, x: Ref) -> Ref:
    """2·relu(x) − x."""
    return _sum(-1.0, build, op, _scaled(build, op, _relu(build, op, x), 2.0), x)


def _max_pool(
    build: Builder, op: Any, x: Ref, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:  # fmt: skip
    """The largest of the shifted images that the windows see, two at a time."""
    axes = 1 if op.__name__.startswith("max_pool1d") else 2
    size, step, pad, far = (_each(value, axes) for value in (kernel, stride or kernel, padding, dilation))
    if len(build.steps[x.number].shape) != axes + 1 or (any(pad) and build.steps[x.number].name != "relu"):
        raise UnboundableError("a max pooling pads its windows, and not behind a rectifier")
    if any(pad):
        x = _padded(build, op, x, [width for width in reversed(pad) for _ in range(2)])
    lengths = build.steps[x.number].shape[1:]
    counts = [(n - f * (k - 1) - 1) // s + 1 for n, k, s, f in zip(lengths, size, step, far, strict=True)]
    if ceil_mode and any((n - f * (k - 1) - 1) % s for n, k, s, f in zip(lengths, size, step, far, strict=True)):
        raise UnboundableError("a max pooling has windows beyond its data")
    seen = []
    for place in range(math.prod(size)):
        starts = [place // math.prod(size[axis + 1 :]) % size[axis] * far[axis] for axis in range(axes)]
        window = tuple(slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, step, counts, strict=True))
        call = lambda p, window=window: p[(..., *window)]  # noqa: E731
        seen.append(build.affine("window", call, call, x))
    pooled = [*seen]
    while len(pooled) > 1:
        pairs = [_maximum(build, op, a, b) for a, b in zip(pooled[::2], pooled[1::2], strict=False)]
        pooled = [*pairs, *pooled[2 * len(pairs) :]]
    return (pooled[0],)


def _max_pool1d(build: Builder, op: Any, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    return _max_pool(build, op, x, *args, **kwargs)[0]


def _each(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def _prelu(build: Builder, op: Any, x: Ref, slope: Tensor) -> Ref:
    return _leaky(build, op, x, slope)


#: What may be done to results with folded axes.
FOLDABLE = ("mm", "addmm", "view", "_unsafe_view", "reshape", "clone")

HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("permute", "transpose", "t", "squeeze", "unsqueeze", "slice", "select", "flip", "avg_pool1d",
                     "avg_pool2d", "_adaptive_avg_pool2d", "mean", "sum", "upsample_nearest2d", "reflection_pad2d",
                     "replication_pad2d", "pixel_shuffle", "unfold", "diagonal", "index_select"), _moved),
    **dict.fromkeys(("split", "split_with_sizes", "unbind", "chunk"), _split),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "expand", "_reshape"), _sized),
    **dict.fromkeys(("clone", "detach", "alias", "lift_fresh", "_to", "to", "contiguous", "lift", "dropout"), _same),
    "zeros_like": partial(_like, 0.0), "ones_like": partial(_like, 1.0), "full_like": partial(_like, None),
    "constant_pad_nd": _padded, "cat": _cat, "add": partial(_sum, 1.0), "sub": partial(_sum, -1.0), "rsub": _rsub,
    "mul": _scaled, "div": _divided, "neg": lambda build, op, x: _scaled(build, op, x, -1.0),
    "addmm": _addmm, "mm": _linear, "convolution": _convolution, "_convolution": _convolution,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"), _batch_norm),
    "relu": _relu, "leaky_relu": _leaky, "_prelu_kernel": _prelu, "hardtanh": _hardtanh, "clamp": _clamp,
    "clamp_min": lambda build, op, x, low: _clamp(build, op, x, low),
    "clamp_max": lambda build, op, x, high: _clamp(build, op, x, None, high),
    "maximum": _maximum, "minimum": _minimum, "amax": _amax, "abs": _abs, "logit": _logit,
    "max_pool2d_with_indices": _max_pool, "max_pool1d": _max_pool1d,
    "sigmoid": partial(_smooth, "sigmoid", torch.sigmoid), "tanh": partial(_smooth, "tanh", torch.tanh),
}  # fmt: skip
