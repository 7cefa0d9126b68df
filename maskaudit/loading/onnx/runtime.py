"""Quantised operators of ONNX Runtime (domain `com.microsoft`), as its quantiser writes them in the format QOperator.

Each computes with what whole numbers stand for, and rounds the result to whole numbers again (ContribOperators.md of
ONNX Runtime): a standard operator between `DequantizeLinear` and `QuantizeLinear`, in which words it is put here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from maskaudit.loading.onnx.tables import Writer, rewrite

DOMAIN = "com.microsoft"
#: Attributes that say how memory lies, or which version of a standard operator is meant.
_ASIDE = ("channels_last", "opset")


def plain_quantised(onnx: Any, model: Any) -> Any:
    """The model without operators of the domain; itself where there are none, or unknown ones.

    Raises:
        ValueError: for a node whose inputs or attributes are not those of its operator.
    """
    found = [node for node in model.graph.node if node.domain == DOMAIN]
    if not found or any(node.op_type not in WRITERS for node in found):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewrite(copy.graph, DOMAIN, lambda node, place: _written(Writer(onnx, node, place)))
    return copy


def _written(w: Writer) -> list[Any]:
    """What does a node's work."""
    if w.given.get("channels_last"):
        raise ValueError(f"{w.node.op_type} has its channels last, which is not converted")
    WRITERS[w.node.op_type](w)
    return w.made


def _input(w: Writer, place: int) -> str:
    """The name of an input; "" where it is left out."""
    return str(w.node.input[place]) if place < len(w.node.input) else ""


def _real(w: Writer, place: int, axis: int = 1) -> str:
    """What the whole numbers of an input stand for; scale and zero point are the two inputs after it."""
    given = [name for name in (_input(w, place + n) for n in range(3)) if name]
    return w.add("DequantizeLinear", given, axis=axis)


def _rounded(w: Writer, result: str, place: int) -> None:
    """The result as whole numbers, by scale and zero point from the input at `place` on."""
    given = [name for name in (result, _input(w, place), _input(w, place + 1)) if name]
    w.add("QuantizeLinear", given, w.node.output[0])


def _same(operator: str, numbers: int) -> Callable[[Writer], None]:
    """A standard operator on so many inputs, with its own attributes."""

    def write(w: Writer) -> None:
        attributes = {name: value for name, value in w.given.items() if name not in _ASIDE}
        result = w.add(operator, [_real(w, 3 * n) for n in range(numbers)], **attributes)
        _rounded(w, result, 3 * numbers)

    return write


def _concat(w: Writer) -> None:
    """Scale and zero point of the result come first."""
    parts = [_real(w, place) for place in range(2, len(w.node.input), 3)]
    _rounded(w, w.add("Concat", parts, axis=w.given.get("axis", 1)), 0)


def _gemm(w: Writer) -> None:
    """alpha · A · B + C, where C counts in steps of alpha times both scales; real numbers where no scale is named."""
    alpha, flipped = w.given.get("alpha", 1.0), w.given.get("transB", 0)
    first, second = _real(w, 0), _real(w, 3, axis=0 if flipped else 1)
    product = w.add("Gemm", [first, second], alpha=alpha, transA=w.given.get("transA", 0), transB=flipped)
    if _input(w, 6):
        step = w.add("Mul", [_input(w, 1), _input(w, 4)])
        bias = w.add("Mul", [w.add("Cast", [_input(w, 6)], to=1), step])
        product = w.add("Add", [product, w.add("Mul", [bias, w.constant(alpha)])])
    if _input(w, 7):
        _rounded(w, product, 7)
    else:
        w.add("Identity", [product], w.node.output[0])


def _standard(w: Writer) -> None:
    """The operator of the same name, which the standard has for other numbers of bits."""
    w.add(w.node.op_type, w.node.input, w.node.output[0], **w.given)


WRITERS: Mapping[str, Callable[[Writer], None]] = {
    "QLinearAdd": _same("Add", 2),
    "QLinearMul": _same("Mul", 2),
    "QLinearSigmoid": _same("Sigmoid", 1),
    "QLinearLeakyRelu": _same("LeakyRelu", 1),
    "QLinearSoftmax": _same("Softmax", 1),
    "QLinearAveragePool": _same("AveragePool", 1),
    "QLinearGlobalAveragePool": _same("GlobalAveragePool", 1),
    "QLinearConcat": _concat,
    "QGemm": _gemm,
    "QuantizeLinear": _standard,
    "DequantizeLinear": _standard,
}
