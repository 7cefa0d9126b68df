"""Differentiable stand-ins for single calls: (call, arguments, live input) → tensor that carries the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskaudit.trace.calls import mapped
from maskaudit.trace.vocabulary import rectifiers

#: Slope that a leaky stand-in gives to the dead side of a rectifier.
LEAK = 0.2

_LEAKY = rectifiers("leaky", "relu_", "threshold_")
CLAMPS = frozenset({
    "clamp", "clip", "hardtanh", "relu6", "clamp_min", "clamp_max", "minimum", "maximum", "hardtanh_", "clamp_",
    "clip_", "hardsigmoid", "hardswish",
})  # fmt: skip
BELOW = frozenset({"lt", "le", "__lt__", "__le__", "less", "less_equal"})
ABOVE = frozenset({"gt", "ge", "__gt__", "__ge__", "greater", "greater_equal"})
#: Calls that return indices or booleans: a soft choice or difference replaces them.
HARD_CHOICES = frozenset({"argmax", "argmin", "topk", "sort", "argsort", "max", "min"}) | BELOW | ABOVE
#: Soft choices are made at this temperature in units of the spread of what is chosen from.
CHOICE_TEMPERATURE = 0.5


def softened(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], live: Tensor,
             temperature: float) -> Tensor:  # fmt: skip
    """Saturated op with a backward that lets something through: identity, leaky or tempered."""
    if name in CLAMPS:
        return live
    if name in _LEAKY:
        return (1 - LEAK) * live.clamp_min(0) + LEAK * live
    rest = tuple(live / temperature if item is live else item for item in args)
    return func(*rest, **kwargs)


def soft_choice(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], live: Tensor, shape: torch.Size) -> Tensor:
    """Soft one-hot vectors, last dimension, for the indices of that shape which a call chose along a dimension.

    A softmax of what is chosen from over its own spread, so that neither far distances nor large scores saturate it;
    all ranks of a top-k share it.
    """
    smallest = name in ("argmin", "min") or (name == "topk" and not _largest(args, kwargs))
    values = -live if smallest else live
    place = 2 if name == "topk" else 1
    dim = kwargs.get("dim", args[place] if len(args) > place else (-1 if name in ("topk", "sort", "argsort") else None))
    if not isinstance(dim, int):
        flat = values.flatten()
        return (flat / _spread(flat, 0)).softmax(0).expand(*shape, len(flat))
    soft = (values / _spread(values, dim)).softmax(dim).movedim(dim, -1)
    if soft.shape[:-1] == shape:
        return soft
    kept = bool(kwargs.get("keepdim", False))
    around = dim % live.dim()
    soft = soft.unsqueeze(around)  # the dimension of ranks, or the one that was kept
    return soft if kept else soft.expand(*shape, soft.shape[-1])


def _largest(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("largest", args[3] if len(args) > 3 else True))


def _spread(values: Tensor, dim: int) -> Tensor:
    """Temperature: a part of the standard deviation along the dimension, off the graph."""
    return (CHOICE_TEMPERATURE * values.detach().std(dim, keepdim=True)).clamp_min(1e-12)


def soft_comparison(name: str, args: tuple[Any, ...]) -> Tensor | None:
    """a − b for a > b, b − a for a < b: the straight-through gradient of a step."""
    if len(args) < 2 or name not in BELOW | ABOVE:
        return None
    left, right = args[0], args[1]
    difference = left - right
    return difference if name in ABOVE else -difference


def on_stand_ins(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
                 stand_in: Callable[[Tensor], Tensor | None]) -> Tensor | None:  # fmt: skip
    """The call repeated on stand-ins instead of dead inputs; None where it makes no sense for them."""
    first = args[0] if args else None
    if name == "one_hot" and isinstance(first, Tensor):
        return _padded(stand_in(first), kwargs.get("num_classes", args[1] if len(args) > 1 else -1))
    if name in ("embedding", "__getitem__") and len(args) > 1:
        index, table = (args[0], args[1]) if name == "embedding" else (args[1], args[0])
        choice = stand_in(index) if isinstance(index, Tensor) else None
        if choice is not None and isinstance(table, Tensor) and choice.shape[-1] == table.shape[0]:
            if not table.is_floating_point() and table.dim() == 1 and int(table.min()) >= 0:
                table = torch.nn.functional.one_hot(table.long())  # a table of classes: the soft class goes on
            return torch.tensordot(choice, table.to(choice.dtype), dims=1)
    if name == "mode" and isinstance(first, Tensor):
        votes = stand_in(first)
        return None if votes is None else votes.mean(dim=-2)
    if name in ("to", "type", "float", "double", "half", "bfloat16", "type_as", "long", "int", "byte", "bool", "char",
                "short", "detach", "data", "clone", "contiguous"):  # fmt: skip
        return stand_in(first) if isinstance(first, Tensor) else None

    if name == "scatter_add" and len(args) > 3 and isinstance(args[2], Tensor):
        choice = stand_in(args[2])
        if choice is not None and args[1] in (1, -1) and args[0].dim() == 2 and choice.shape[-1] <= args[0].shape[1]:
            votes = (args[3].unsqueeze(-1) * choice).sum(dim=1)
            return args[0] + _padded(votes, args[0].shape[1])

    def swap(tensor: Tensor) -> Tensor:
        replaced = stand_in(tensor)
        return tensor if replaced is None else replaced

    try:
        result = func(*mapped(args, swap), **mapped(kwargs, swap))
    except (RuntimeError, TypeError, IndexError, ValueError):
        return None  # the op has no meaning for soft values; the gradient ends here
    return result if isinstance(result, Tensor) else None


def _padded(soft: Tensor | None, classes: Any) -> Tensor | None:
    """Soft classes with zeros for those beyond the largest label of a table."""
    if soft is None or not isinstance(classes, int) or classes <= soft.shape[-1]:
        return soft
    return torch.nn.functional.pad(soft, (0, classes - soft.shape[-1]))
