"""Quantisers of QONNX, the dialect in which Brevitas, QKeras and FINN export networks of few bits.

Pappalardo et al. 2022, "QONNX: Representing Arbitrary-Precision Quantized Neural Networks" (arXiv 2206.07527), and the
operator documentation of its package. The operators answer real numbers that lie on a grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskaudit.loading.onnx.attributes import Attributes, Operator

#: Names of the operators' domain, as exporters have written them.
DOMAINS = frozenset(("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"))
ROUNDINGS: dict[str, Operator] = {
    "ROUND": torch.round, "CEIL": torch.ceil, "FLOOR": torch.floor, "ROUND_TO_ZERO": torch.trunc, "DOWN": torch.trunc,
}  # fmt: skip
#: Number of inputs, and attributes with their types, by operator.
SIGNATURES: dict[str, tuple[int, dict[str, str]]] = {
    "Quant": (4, {"signed": "INT", "narrow": "INT", "rounding_mode": "STRING"}),
    "BipolarQuant": (2, {}),
}


def quant(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor, bits: Tensor) -> Tensor:
    """x on the grid of whole numbers of so many bits, signed or not, times `scale`; narrow grids lack an end.

    Raises:
        ValueError: for a way of rounding that is not known.
    """
    rounded = ROUNDINGS.get(str(a.get("rounding_mode", "ROUND")).upper())
    if rounded is None:
        raise ValueError("a quantiser rounds in a way that is not known")
    narrow = a.get("narrow", 0)
    half = 2.0 ** (bits - 1)
    low, high = (narrow - half, half - 1) if a.get("signed", 1) else (0 * half, 2 * half - 1 - narrow)
    grid: Tensor = rounded(torch.minimum(torch.maximum(x / scale + zero, low), high))
    return (grid - zero) * scale


def bipolar(a: Attributes, x: Tensor, scale: Tensor) -> Tensor:
    """+scale where x is at least 0, −scale elsewhere."""
    return torch.where(x >= 0, scale, -scale)


#: Operators by name; none of them is a standard one's.
QUANTISERS: dict[str, Operator] = {"Quant": quant, "BipolarQuant": bipolar}


def quantises(domain: str, operator: str) -> bool:
    """Whether a node of this domain is one of them."""
    return domain in DOMAINS and operator in QUANTISERS
