"""Differentiable stand-ins for single calls: (call, arguments, live input) → tensor that carries the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Slope that a leaky stand-in gives to the dead side of a rectifier.
LEAK = 0.2

RECTIFIERS = frozenset({"relu", "relu_", "threshold", "threshold_"})
CLAMPS = frozenset({
    "clamp", "clip", "hardtanh", "relu6", "clamp_min", "clamp_max", "minimum", "maximum", "hardtanh_", "clamp_",
    "clip_", "hardsigmoid", "hardswish",
})  # fmt: skip
BELOW = frozenset({"lt", "le", "__lt__", "__le__", "less", "less_equal"})
ABOVE = frozenset({"gt", "ge", "__gt__", "__ge__", "greater", "greater_equal"})


def softened(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], live: Tensor,
             temperature: float) -> Tensor:  # fmt: skip
    """Saturated op with a backward that lets something through: identity, leaky or tempered."""
    if name in CLAMPS:
        return live
    if name in RECTIFIERS:
        return (1 - LEAK) * live.clamp_min(0) + LEAK * live
    rest = tuple(live / temperature if item is live else item for item in args)
    result: Tensor = func(*rest, **kwargs)
    return result


def soft_choice(args: tuple[Any, ...], kwargs: dict[str, Any], live: Tensor) -> Tensor:
    """softmax along the dimension in which an argmax chose, moved last: the soft one-hot vector of the choice."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(dim, int):
        return live.flatten().softmax(0)
    return live.softmax(dim).movedim(dim, -1)


def soft_comparison(name: str, args: tuple[Any, ...]) -> Tensor | None:
    """a − b for a > b, b − a for a < b: the straight-through gradient of a step."""
    if len(args) < 2 or name not in BELOW | ABOVE:
        return None
    left, right = args[0], args[1]
    difference = left - right
    result: Tensor = difference if name in ABOVE else -difference
    return result


def on_stand_ins(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
                 stand_in: Callable[[Tensor], Tensor | None]) -> Tensor | None:  # fmt: skip
    """The call repeated on stand-ins instead of dead inputs; None where it makes no sense for them."""
    first = args[0] if args else None
    if name == "one_hot" and isinstance(first, Tensor):
        return stand_in(first)
    if name in ("embedding", "__getitem__") and len(args) > 1:
        index, table = (args[0], args[1]) if name == "embedding" else (args[1], args[0])
        choice = stand_in(index) if isinstance(index, Tensor) else None
        if choice is not None and isinstance(table, Tensor) and choice.shape[-1] == table.shape[0]:
            return torch.tensordot(choice, table.to(choice.dtype), dims=1)
    if name in ("to", "type", "float", "double", "half", "bfloat16", "type_as", "long", "int", "byte", "bool", "char",
                "short", "detach", "data", "clone", "contiguous"):  # fmt: skip
        return stand_in(first) if isinstance(first, Tensor) else None

    def swap(item: Any) -> Any:
        if isinstance(item, Tensor):
            replaced = stand_in(item)
            return item if replaced is None else replaced
        if isinstance(item, (tuple, list)):
            return type(item)(swap(part) for part in item)
        return item

    try:
        result = func(*swap(args), **{key: swap(value) for key, value in kwargs.items()})
    except (RuntimeError, TypeError, IndexError, ValueError):
        return None  # the op has no meaning for soft values; the gradient ends here
    return result if isinstance(result, Tensor) else None
