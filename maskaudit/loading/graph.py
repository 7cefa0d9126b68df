"""A converted model as a torch module: one small module per operation, called in the order of the file.

Operations bear the names that the file gives them, so that a trace can say which one is meant. Nothing
of the file is turned into Python code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.loading.graph_limits import (
    MAX_FIXED_BATCH,
    MAX_WORK,
    TRIAL_ALIVE,
    TRIAL_WORK,
    Rehearsal,
    TooLarge,
    check_name,
    rehearsing,
    stand_in,
)
from maskaudit.target.chunks import FixedBatch
from maskaudit.target.scores import columns

#: Shape of an input with the batch axis; None where a file leaves the size open.
Shape = Sequence[int | None]
#: Shapes of inputs that a program remembers as rehearsed.
MAX_SHAPES = 4_096
#: Numbers of points that are tried where a file states none, the first of which no exporter's example has.
BATCHES = (5, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class GraphStep:
    """One operation.

    Attributes:
        path: where its module is put, dotted, such as `net.0.conv2d`.
        module: called with the values of `inputs`.
        inputs: names of values; "" is an input that is left out (None).
        outputs: names that its results get; one name takes the result as it is, none leaves it.
    """

    path: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Program(nn.Module):
    """Runs steps on one input.

    Args:
        steps: in an order in which every value is there before it is used.
        tensors: parameters, buffers and constants by the name of their value, each with its dotted path.
        source: name of the input value; results: names of what is returned, a tuple if there are several.
        steady: whether all sizes grow with the number of points, so that what was rehearsed holds for fewer.

    Raises:
        ValueError: when a step uses a value that nothing provides.
    """

    def __init__(
        self, steps: Iterable[GraphStep], tensors: Mapping[str, tuple[str, Tensor]], source: str,
        results: tuple[str, ...], *, steady: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self._source, self._results, self._steady = source, results, steady
        self._rehearsed: dict[tuple[Any, ...], int] = {}
        self._taken: dict[tuple[int, str], int] = {}
        placed = {path: self._place(path, tensor) for path, tensor in dict(tensors.values()).items()}
        self._held = {name: placed[path] for name, (path, _) in tensors.items()}
        self._steps: list[tuple[tuple[nn.Module, str], GraphStep]] = [
            (self._place(step.path, step.module), step) for step in steps
        ]
        self._last_use = self._check()

    def forward(self, x: Tensor) -> Any:
        """Class scores, or whatever the file's program returns, for inputs (N, …)."""
        if len(x) > self._rehearsed.get(self._key(x.shape, x.dtype), -1):
            self.rehearse(x.shape, x.dtype)
        held = {name: getattr(owner, attribute) for name, (owner, attribute) in self._held.items()}
        return self._run(x, held, lambda module, *values: module(*values))

    def operations(self) -> Iterator[tuple[GraphStep, nn.Module, dict[str, Tensor]]]:
        """Every step with its module, and the weights and constants by name, in order."""
        held = {name: getattr(owner, attribute) for name, (owner, attribute) in self._held.items()}
        for (owner, attribute), step in self._steps:
            yield step, getattr(owner, attribute), held

    def rehearse(self, shape: torch.Size, dtype: torch.dtype) -> Rehearsal:
        """Run on shapes alone, before anything is computed for inputs of a shape; returns what that would cost.

        Raises:
            TooLarge: beyond a limit of `graph_limits`.
            ValueError, RuntimeError, …: where operations do not fit each other.
        """
        with rehearsing() as rehearsal:
            held = {name: stand_in(getattr(owner, attribute)) for name, (owner, attribute) in self._held.items()}
            self._run(torch.empty(shape, dtype=dtype, device="meta"), held, rehearsed)
        if rehearsal.work > MAX_WORK * max(1, shape[0]):
            raise TooLarge(f"a pass takes {rehearsal.work:.0e} operations, {MAX_WORK:.0e} are allowed per point")
        if len(self._rehearsed) >= MAX_SHAPES:
            self._rehearsed.clear()
        self._rehearsed[self._key(shape, dtype)] = shape[0]
        return rehearsal

    def _key(self, shape: torch.Size, dtype: torch.dtype) -> tuple[Any, ...]:
        return (*(shape[1:] if self._steady else shape), dtype)

    def _run(self, x: Tensor, held: dict[str, Tensor], call: Callable[..., Any]) -> Any:
        values: dict[str, Any] = {"": None, self._source: x, **held}
        for number, ((owner, attribute), step) in enumerate(self._steps):
            result = call(getattr(owner, attribute), *(values[name] for name in step.inputs))
            if len(step.outputs) == 1:
                values[step.outputs[0]] = result
            elif step.outputs and result is not None:  # what only asserts something gives nothing
                values.update(zip(step.outputs, result, strict=False))
            for name in self._last_use.get(number, ()):
                values.pop(name, None)
        found = tuple(values[name] for name in self._results)
        return found[0] if len(found) == 1 else found

    def _place(self, path: str, item: Tensor | nn.Module) -> tuple[nn.Module, str]:
        """Register under a dotted path (a free name near it), making the containers on the way."""
        owner: nn.Module = self
        *containers, last = (_attribute(part) for part in check_name(path).split("."))
        for name in containers:
            child = owner._modules.get(name)
            if child is None:
                name = self._free(owner, name)
                child = nn.Module()
                owner.add_module(name, child)
            owner = child
        last = self._free(owner, last)
        if isinstance(item, nn.Module):
            owner.add_module(last, item)
        elif isinstance(item, nn.Parameter):
            owner.register_parameter(last, item)
        else:
            owner.register_buffer(last, item)
        return owner, last

    def _free(self, owner: nn.Module, name: str) -> str:
        """`name`, or the first of name_1, name_2, … that the module does not have yet."""
        chosen, number = name, self._taken.get((id(owner), name), 0)
        while hasattr(owner, chosen):
            number += 1
            chosen = f"{name}_{number}"
        self._taken[id(owner), name] = number
        return chosen

    def _check(self) -> dict[int, tuple[str, ...]]:
        """Every value is there when it is used; returns which values each step is the last to use."""
        known = {"", self._source, *self._held}
        last: dict[str, int] = {}
        for number, (_, step) in enumerate(self._steps):
            missing = [name for name in step.inputs if name not in known]
            if missing:
                raise ValueError(f"{step.path} uses {missing[0]}, which nothing before it provides")
            known.update(step.outputs)
            last.update((name, number) for name in (*step.inputs, *step.outputs))
        missing = [name for name in self._results if name not in known]
        if missing:
            raise ValueError(f"the result {missing[0]} is computed nowhere")
        kept = {"", *self._results, *self._held}
        uses: dict[int, tuple[str, ...]] = {}
        for name, number in last.items():
            if name not in kept:
                uses[number] = (*uses.get(number, ()), name)
        return uses


def rehearsed(module: nn.Module, *values: Any) -> Any:
    """What a step makes of values without data; hooks on modules do not see it."""
    return getattr(module, "rehearse", module.forward)(*values)


def _attribute(part: str) -> str:
    """A part of a file's name that can be printed and written."""
    return "".join(character if character.isprintable() else "_" for character in part) or "_"


class Modeless(nn.Module):
    """A module whose evaluation mode was settled when it was exported: mode changes do not reach it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        """What the exported module returns for x."""
        return self.module(x)

    def train(self, mode: bool = True) -> Modeless:
        """Note the mode, and leave the exported module as it is."""
        self.training = mode
        return self


def any_batch(module: nn.Module, shape: Shape | None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module, made to take any number of points if it was exported for a fixed one.

    Args:
        shape: of the input that the file states, if it does. A fixed first size often is a mere remark, so two batches
            are tried at once; only where that does not give the answers of each batch alone is `FixedBatch` used.
        dtype: of that input.

    Raises:
        TooLarge: when the program goes beyond a limit.
        ValueError, RuntimeError, …: when its operations do not fit each other.
    """
    if shape is None:
        return module
    size, *rest = shape
    point = [length for length in rest if length is not None]
    known = len(point) == len(rest)
    if isinstance(module, Program) and known:
        size = _batch(module, (size,) if size is not None else BATCHES, point, dtype)
    if size is None or size < 1:
        return module
    if size > MAX_FIXED_BATCH:
        raise TooLarge(f"it takes batches of exactly {size} points, at most {MAX_FIXED_BATCH} are read")
    if known and _takes_two(module, (size, *point), dtype):
        return module
    return FixedBatch(module, size)


def _batch(module: Program, sizes: Sequence[int], point: Sequence[int], dtype: torch.dtype) -> int | None:
    """The number of points that the program takes, None if any: an open size may be stated where one was baked in."""
    failure: Exception | None = None
    for size in sizes:
        try:
            module.rehearse(torch.Size((size, *point)), dtype)
        except TooLarge as error:
            raise failure or error from None
        except Exception as error:  # whatever the operations say to a batch that they were not made for
            failure = failure or error
        else:
            return size if failure is not None or len(sizes) == 1 else None
    assert failure is not None
    raise failure


def _takes_two(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    try:
        if isinstance(module, Program):
            cost = module.rehearse(torch.Size((2 * shape[0], *shape[1:])), dtype)
            if cost.work > TRIAL_WORK or cost.alive > TRIAL_ALIVE:
                return False
        x = torch.rand(2 * shape[0], *shape[1:]).to(dtype)
        with torch.no_grad():
            apart = torch.cat([columns(module(part), shape[0]) for part in x.split(shape[0])])
            together = columns(module(x), len(x))
        return together.shape == apart.shape and torch.allclose(together, apart, rtol=1e-4, atol=1e-5)
    except Exception:  # whatever the operations say to a batch that they were not made for
        return False
