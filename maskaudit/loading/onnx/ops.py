"""ONNX operators by torch functions, as the operator specification (onnx.ai/onnx/operators) defines them.

An operator is a function of its attributes and inputs. Where the specification moved an argument from the
attributes to the inputs, both places are looked at. A further operator is one function and one line in `OPS`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskaudit.loading.onnx import layers, pooling, recurrent, resizing, shapes, signals
from maskaudit.loading.onnx.attributes import DTYPES, Attributes, Operator, ints, number, place
from maskaudit.loading.onnx.quantisers import QUANTISERS
from maskaudit.loading.op_guards import check_division


def _plain(function: Operator) -> Operator:
    """An operator without attributes."""
    return lambda a, *inputs: function(*inputs)


def _divide(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point():
        return x / y
    check_division(x, y)
    return torch.div(x, y, rounding_mode="trunc")


def _modulo(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    check_division(x, y)
    return torch.fmod(x, y) if a.get("fmod", 0) else torch.remainder(x, y)


def _folded(function: Operator) -> Operator:
    """An operator on any number of inputs."""

    def run(a: Attributes, *inputs: Tensor) -> Tensor:
        result = inputs[0]
        for one in inputs[1:]:
            result = function(result, one)
        return result

    return run


def _clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    lowest, highest = low if low is not None else a.get("min"), high if high is not None else a.get("max")
    if lowest is None and highest is None:
        return x
    return torch.clamp(x, number(lowest), number(highest)).to(x.dtype)


def _gemm(a: Attributes, x: Tensor, w: Tensor, c: Tensor | None = None) -> Tensor:
    x = x.mT if a.get("transA", 0) else x
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    if a.get("transB", 0) and alpha == beta == 1.0 and (c is None or c.dim() == 1):
        return F.linear(x, w, c)
    product = alpha * (x @ (w.mT if a.get("transB", 0) else w))
    return product if c is None else product + beta * c


def _softmax(function: Operator) -> Operator:
    def run(a: Attributes, x: Tensor) -> Tensor:
        if a.opset >= 13:
            return function(x, dim=a.get("axis", -1))
        axis = a.get("axis", 1) % x.dim()  # before opset 13: over all axes from this one on
        return function(x.flatten(axis), dim=axis).view(x.shape)

    return run


def _constant(a: Attributes) -> Tensor:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        value = a.get(name)
        if value is not None:
            return value if isinstance(value, Tensor) else torch.tensor(value)
    raise ValueError("a Constant of a kind that is not supported")


def _cast(a: Attributes, x: Tensor) -> Tensor:
    return x.to(DTYPES[a.get("to")])


#: What the largest and the smallest of no numbers are.
_EXTREMES: dict[Operator, float] = {torch.amax: -math.inf, torch.amin: math.inf}


def _reduce(function: Operator) -> Operator:
    def run(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = ints(axes if axes is not None else a.get("axes"))
        if not chosen and a.get("noop_with_empty_axes", 0):
            return x
        axes_ = tuple(chosen or range(x.dim()))
        if function in _EXTREMES and not all(x.shape[axis] for axis in axes_):
            shape = [1 if axis % x.dim() in {i % x.dim() for i in axes_} else n for axis, n in enumerate(x.shape)]
            least = torch.full(shape, _EXTREMES[function], dtype=x.dtype, device=x.device)
            return least if a.get("keepdims", 1) else least.squeeze(axes_)
        return function(x, axes_, bool(a.get("keepdims", 1)))

    return run


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keep)
    return x


def _arg(function: Operator) -> Operator:
    def run(a: Attributes, x: Tensor) -> Tensor:
        axis, keep = a.get("axis", 0), bool(a.get("keepdims", 1))
        if not a.get("select_last_index", 0):
            return function(x, dim=axis, keepdim=keep)
        return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)

    return run


def _hardmax(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", -1)
    return torch.zeros_like(x).scatter(axis, x.argmax(dim=axis, keepdim=True), 1.0)


def _one_hot(a: Attributes, index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    classes = int(number(depth) or 0)
    hot = F.one_hot(index.long() % classes, classes).to(values.dtype)
    return (values[0] + hot * (values[1] - values[0])).movedim(-1, a.get("axis", -1))


def _top_k(a: Attributes, x: Tensor, k: Tensor | None = None) -> Any:
    count = int(number(k) or 0) if k is not None else a.get("k")
    found = x.topk(count, dim=a.get("axis", -1), largest=bool(a.get("largest", 1)), sorted=bool(a.get("sorted", 1)))
    return found.values if a.outputs == 1 else (found.values, found.indices)


def _cumulative(function: Operator, none: float) -> Operator:
    def run(a: Attributes, x: Tensor, axis: Tensor) -> Tensor:
        along = int(number(axis) or 0)
        x = x.flip(along) if a.get("reverse", 0) else x
        if a.get("exclusive", 0):
            first = torch.full_like(x.narrow(along, 0, 1), none)
            x = torch.cat([first, x.narrow(along, 0, x.shape[along] - 1)], dim=along)
        result: Tensor = function(x, dim=along)
        return result.flip(along) if a.get("reverse", 0) else result

    return run


def _selu(a: Attributes, x: Tensor) -> Tensor:
    if "alpha" not in a.values and "gamma" not in a.values:
        return F.selu(x)
    alpha, gamma = a.get("alpha", 1.67326319217681884765625), a.get("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def _shrink(a: Attributes, x: Tensor) -> Tensor:
    bias, least = a.get("bias", 0.0), a.get("lambd", 0.5)
    return torch.where(x < -least, x + bias, torch.where(x > least, x - bias, torch.zeros_like(x)))


def _infinite(a: Attributes, x: Tensor) -> Tensor:
    above, below = a.get("detect_positive", 1), a.get("detect_negative", 1)
    return torch.isinf(x) & (((x > 0) & bool(above)) | ((x < 0) & bool(below)))


def _mean(a: Attributes, *inputs: Tensor) -> Tensor:
    total = inputs[0]
    for one in inputs[1:]:
        total = total + one
    return total / len(inputs)


def _einsum(a: Attributes, *inputs: Tensor) -> Tensor:
    return torch.einsum(a.get("equation"), *inputs)


#: Operators by name.
OPS: dict[str, Operator] = {
    "Identity": _plain(lambda x: x),
    "Dropout": lambda a, x, *rest: x,
    "Relu": _plain(torch.relu),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "PRelu": _plain(lambda x, slope: torch.relu(x) - slope * torch.relu(-x)),
    "ThresholdedRelu": lambda a, x: F.threshold(x, a.get("alpha", 1.0), 0.0),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Celu": lambda a, x: F.celu(x, a.get("alpha", 1.0)),
    "Selu": _selu,
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Mish": _plain(F.mish),
    "HardSwish": _plain(F.hardswish),
    "HardSigmoid": lambda a, x: torch.clamp(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0.0, 1.0),
    "Sigmoid": _plain(torch.sigmoid),
    "Tanh": _plain(torch.tanh),
    "Softplus": _plain(F.softplus),
    "Softsign": _plain(F.softsign),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Hardmax": _hardmax,
    "Clip": _clip,
    "Neg": _plain(torch.neg),
    "Abs": _plain(torch.abs),
    "Sign": _plain(torch.sign),
    "Floor": _plain(torch.floor),
    "Ceil": _plain(torch.ceil),
    "Round": _plain(torch.round),
    "Exp": _plain(torch.exp),
    "Log": _plain(torch.log),
    "Sqrt": _plain(torch.sqrt),
    "Reciprocal": _plain(torch.reciprocal),
    "Erf": _plain(torch.erf),
    "Sin": _plain(torch.sin),
    "Cos": _plain(torch.cos),
    "Tan": _plain(torch.tan),
    "Asin": _plain(torch.asin),
    "Acos": _plain(torch.acos),
    "Atan": _plain(torch.atan),
    "Sinh": _plain(torch.sinh),
    "Cosh": _plain(torch.cosh),
    "Asinh": _plain(torch.asinh),
    "Acosh": _plain(torch.acosh),
    "Atanh": _plain(torch.atanh),
    "Swish": lambda a, x: x * torch.sigmoid(a.get("alpha", 1.0) * x),
    "Shrink": _shrink,
    "Det": _plain(torch.linalg.det),
    "IsNaN": _plain(torch.isnan),
    "IsInf": _infinite,
    "Xor": _plain(torch.logical_xor),
    "Not": _plain(torch.logical_not),
    "And": _plain(torch.logical_and),
    "Or": _plain(torch.logical_or),
    "Equal": _plain(torch.eq),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Where": _plain(torch.where),
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _divide,
    "Mod": _modulo,
    "Pow": _plain(torch.pow),
    "Min": _folded(torch.minimum),
    "Max": _folded(torch.maximum),
    "Sum": _folded(torch.add),
    "Mean": _mean,
    "MatMul": _plain(torch.matmul),
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "MaxPool": pooling.max_pool,
    "MaxUnpool": pooling.max_unpool,
    "AveragePool": pooling.average_pool,
    "LpPool": pooling.lp_pool,
    "GlobalAveragePool": pooling.pooled_by(torch.mean),
    "GlobalMaxPool": pooling.pooled_by(torch.amax),
    "GlobalLpPool": pooling.global_lp_pool,
    "BatchNormalization": layers.batch_norm,
    "InstanceNormalization": layers.instance_norm,
    "LayerNormalization": layers.layer_norm,
    "GroupNormalization": layers.group_norm,
    "MeanVarianceNormalization": layers.mean_variance_norm,
    "LpNormalization": layers.lp_norm,
    "RNN": recurrent.rnn,
    "GRU": recurrent.gru,
    "LSTM": recurrent.lstm,
    "DFT": signals.dft,
    "STFT": signals.stft,
    "GridSample": layers.grid_sample,
    "Col2Im": layers.col2im,
    "LRN": layers.local_response,
    "Flatten": shapes.flatten,
    "Reshape": shapes.reshape,
    "Transpose": shapes.transpose,
    "Squeeze": shapes.squeeze,
    "Unsqueeze": shapes.unsqueeze,
    "Slice": shapes.slices,
    "Gather": shapes.gather,
    "GatherElements": shapes.gather_elements,
    "GatherND": shapes.gather_nd,
    "ScatterND": shapes.scatter_nd,
    "ScatterElements": shapes.scatter_elements,
    "Scatter": shapes.scatter_elements,
    "TensorScatter": shapes.tensor_scatter,
    "Compress": shapes.compress,
    "ReverseSequence": shapes.reverse_sequence,
    "Trilu": shapes.trilu,
    "Concat": shapes.concat,
    "Split": shapes.split,
    "Expand": shapes.expand,
    "Tile": lambda a, x, repeats: x.repeat(ints(repeats)),
    "Pad": shapes.pad,
    "Shape": shapes.shape,
    "Size": _plain(lambda x: torch.tensor(x.numel(), device=place(x))),
    "Constant": _constant,
    "ConstantOfShape": shapes.constant_of_shape,
    "Range": shapes.arange,
    "Cast": _cast,
    "CastLike": _plain(lambda x, other: x.to(other.dtype)),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_product),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "OneHot": _one_hot,
    "TopK": _top_k,
    "CumSum": _cumulative(torch.cumsum, 0.0),
    "CumProd": _cumulative(torch.cumprod, 1.0),
    "Resize": resizing.resize,
    "Upsample": resizing.upsample,
    "DepthToSpace": layers.depth_to_space,
    "SpaceToDepth": layers.space_to_depth,
    "QuantizeLinear": layers.quantise,
    "DequantizeLinear": layers.dequantise,
    "QLinearConv": layers.qlinear_conv,
    "QLinearMatMul": layers.qlinear_matmul,
    "ConvInteger": layers.conv_integer,
    "MatMulInteger": layers.matmul_integer,
    **QUANTISERS,
}
#: Operators that give every output that their node names.
SEVERAL = frozenset(("Split", "TopK", "RNN", "GRU", "LSTM", "LayerNormalization", "MaxPool"))
