"""One op and one custom Function, as the observer notes them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import Node

from maskaudit.files import shown_path
from maskaudit.results import Location

OpKind = Literal["torch", "function", "node", "entry", "escape"]


@dataclass
class RecordedOp:
    """One op while it is being recorded; the mutable form of `records.Op`."""

    index: int
    name: str
    module: str
    file: str | None
    line: int | None
    kind: OpKind
    grad_mode: bool
    live_in: bool = False
    live_out: bool = False
    carries: bool = False
    parents: tuple[int, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    data: tuple[Tensor, ...] = ()
    phase: Tensor | None = None
    no_grad: Location | None = None
    across_batch: bool = False
    refused: str = ""  # what torch reported where it refuses the op on data with a gradient
    writes: Tensor | None = None  # what it may have written to

    @property
    def location(self) -> Location:
        """Module, name and source line of the operation."""
        return Location(self.module, self.name, self.file, self.line)

    def made_the_same(self, other: RecordedOp) -> bool:
        """Whether both made the same data."""
        return len(self.data) == len(other.data) and all(map(same_data, self.data, other.data))


@dataclass
class FunctionCall:
    """First call of a custom autograd Function with tensor arguments."""

    function: type[torch.autograd.Function]
    arguments: tuple[Any, ...]
    location: Location


def function_location(function: type[torch.autograd.Function], module: str) -> Location:
    """Where a custom Function is defined: the line of its backward, of the class where it has none."""
    base = torch.autograd.Function
    written = [f for f, own in ((function.backward, base.backward), (function.vjp, base.vjp)) if f is not own]
    try:
        found = inspect.getsourcefile(function)
        file = shown_path(found) if found else None
        if not written:
            return Location(module, function.__name__, file, inspect.getsourcelines(function)[1])
        source, line = inspect.getsourcelines(written[0])
        line += next((i for i, text in enumerate(source) if text.lstrip().startswith("def ")), 0)
    except (OSError, TypeError):
        file, line = None, None
    return Location(module, function.__name__, file, line)


def has_memory(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor lie in memory, one after another at its strides."""
    return tensor.layout == torch.strided and not tensor.is_meta


def same_data(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN like NaN; those that have no plain data count as the same."""
    if not has_memory(a) or not has_memory(b) or a.is_quantized or b.is_quantized:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    if not (a.is_floating_point() and bool(a.sum().isnan())):
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
