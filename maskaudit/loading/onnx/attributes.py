"""What an ONNX operator is given, and how its numbers are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

#: Numbers of types in ONNX (TensorProto.DataType).
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class Attributes:
    """Attributes of a node, the version of the operator set, and how many outputs the node names."""

    opset: int
    outputs: int = 1
    values: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.values.get(name, default)


Operator = Callable[..., Any]


def ints(value: Tensor | Sequence[int] | None) -> list[int] | None:
    """Sizes, axes or offsets as plain numbers, unseen by what observes torch: they are no data of the model.

    Raises:
        ValueError: when they depend on the values of the input.
    """
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return [int(item) for item in value]
    return [int(item) for item in known(value).flatten().tolist()]


def number(value: Tensor | float | None) -> float | None:
    """A scalar as a plain number, likewise."""
    if value is None or not isinstance(value, Tensor):
        return value
    return float(known(value).item())


def some(a: Attributes, *results: Tensor) -> Any:
    """The outputs that a node names: one tensor, or a tuple of them."""
    return results[0] if a.outputs == 1 else results[: a.outputs]


def place(x: Tensor) -> torch.device:
    """Where numbers about a tensor's shape are put: next to it, or here when it has no data."""
    return torch.device("cpu") if x.is_meta else x.device


def known(value: Tensor) -> Tensor:
    """A tensor whose values may be read.

    Raises:
        ValueError: when they depend on the values of the input.
    """
    if value.is_meta:
        raise ValueError("a size or bound depends on the values of the input")
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        return value.detach().cpu()
