"""Activations by name and argument, and the units of rectifiers that are off: at or below the floor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskaudit.trace.vocabulary import rectifiers
from maskaudit.verdict.limits import SHUT_SLOPE

#: Names of the same function, in-place forms aside.
_ALIASES = {"special_expit": "sigmoid", "clip": "clamp", "_threshold": "threshold"}
_WITH_FLOOR = rectifiers("floor")


def canonical(name: str) -> str:
    """`tanh` for tanh, tanh_ and special forms of one name."""
    plain = name.removesuffix("_") if not name.endswith("__") else name
    return _ALIASES.get(plain, plain)


def is_rectifier(name: str) -> bool:
    """Whether a call of this name may cut its argument off from below."""
    return canonical(name) in _WITH_FLOOR


@dataclass(frozen=True)
class ActivationCall:
    """One activation about to be computed on `x`, by its `canonical` name, with its arguments by position and name."""

    op: str
    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def argument(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument by position (0 is the one after the tensor) or by one of its names."""
        if position < len(self.args):
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)

    @property
    def floor(self) -> Any:
        """Below what, number or tensor, a rectifier cuts its argument off; None where it does not."""
        if self.op in ("relu", "relu6"):
            return 0.0
        if self.op == "leaky_relu":
            slope = self.argument(0, "negative_slope", default=0.01)
            return 0.0 if isinstance(slope, (int, float)) and abs(slope) < SHUT_SLOPE else None
        if self.op == "hardtanh":
            return self.argument(0, "min_val", default=-1.0)
        return self.argument(0, {"threshold": "threshold", "maximum": "other"}.get(self.op, "min"))

    def off(self) -> Tensor | None:
        """Which units of a rectifier's argument are not above its floor, bool of its shape; None without a floor."""
        floor = self.floor
        if isinstance(floor, Tensor):
            alike = not floor.requires_grad and torch.broadcast_shapes(self.x.shape, floor.shape) == self.x.shape
            return self.x.detach() <= floor if alike else None
        return self.x.detach() <= floor if isinstance(floor, (int, float)) else None


def activation(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActivationCall | None:
    """A call as that of an activation; None where it is given no floating-point tensor."""
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    return ActivationCall(canonical(name), x, args[1:], kwargs)


def off_everywhere(off: Tensor, before: Tensor | None = None) -> Tensor | None:
    """Which units are off at each of the points (N, …), and were `before`; None where their number changed."""
    here = off.all(dim=0)
    if before is None:
        return here
    return before & here if before.shape == here.shape else None
