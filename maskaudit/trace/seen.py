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
from maskaudit.trace.prints import Print

Kind = Literal["torch", "function", "node", "entry", "escape"]


@dataclass
class Seen:
    """One op while it is being recorded; the mutable form of `records.Op`."""

    index: int
    name: str
    module: str
    file: str | None
    line: int | None
    kind: Kind
    grad_mode: bool
    live_in: bool = False
    live_out: bool = False
    parents: tuple[int, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    prints: tuple[Print | None, ...] = ()
    phase: Tensor | None = None
    no_grad: Location | None = None
    across_batch: bool = False

    @property
    def location(self) -> Location:
        """Where it ran."""
        return Location(self.module, self.name, self.file, self.line)


@dataclass
class FunctionCall:
    """First call of a custom autograd Function with tensor arguments."""

    function: type[torch.autograd.Function]
    arguments: tuple[Any, ...]
    module: str
    location: Location


def function_location(function: type[torch.autograd.Function], module: str) -> Location:
    """Where a custom Function is defined: the line of its backward, else of the class."""
    try:
        found = inspect.getsourcefile(function)
        file = shown_path(found) if found else None
        source, line = inspect.getsourcelines(function.backward)
        line += next((i for i, text in enumerate(source) if text.lstrip().startswith("def ")), 0)
    except (OSError, TypeError):
        file, line = None, None
    return Location(module, function.__name__, file, line)
