"""See the activations of a model while it runs, and say where in the model they are.

Element-wise activations are caught through a `TorchFunctionMode`, which sees
`nn.Tanh` and `torch.tanh` alike; two temporary hooks per module keep the path of
the module that is running. TorchScript code is opaque to both. Everything is
undone on leaving, also after an exception.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maskaudit.files import shown_path
from maskaudit.probes.interface import ProbeContext
from maskaudit.results import Location
from maskaudit.target import Target
from maskaudit.trace.functorch import bare, below

#: Names of the same function, in-place forms aside.
_ALIASES = {"special_expit": "sigmoid", "clip": "clamp", "_threshold": "threshold"}

_TORCH_FOLDER = str(Path(torch.__file__).parent)
_CALLER = Target._call.__code__


@dataclass(frozen=True)
class ActivationSite:
    """One place where an activation is computed: the `ordinal`-th call there within a forward pass."""

    location: Location
    ordinal: int


@dataclass(frozen=True)
class ActivationCall:
    """One activation about to be computed on `x`, with its arguments by position and name."""

    op: str
    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def argument(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument by position (0 is the one after the tensor) or by one of its names."""
        if position < len(self.args):
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)


Handler = Callable[[ActivationSite, ActivationCall], None]


def observe(context: ProbeContext, ops: frozenset[str], handler: Handler) -> None:
    """One forward pass over the points of `context`; `handler` gets each call of one of `ops` before it runs."""
    target = context.target
    with observer(target, ops, handler) as begin:
        for start in range(0, len(context.x), target.batch_size):
            batch = context.x[start : start + target.batch_size]
            begin(len(batch))
            target.raw(batch)


def opaque(model: object) -> bool:
    """Whether (part of) the model is TorchScript, whose activations cannot be seen from Python."""
    if isinstance(model, nn.Module):
        return any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    return isinstance(model, torch.jit.ScriptFunction)


@contextlib.contextmanager
def observer(target: Target, ops: frozenset[str], handler: Handler) -> Iterator[Callable[[int], None]]:
    """Watch the model; yields `begin(batch_size)`, to be called before each forward pass."""
    stack: list[str] = []
    mode = _ActivationMode(ops, handler, stack)
    with contextlib.ExitStack() as cleanup:
        if isinstance(target.model, nn.Module):
            for name, module in target.model.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    _track(module, name, stack, cleanup)
        cleanup.enter_context(mode)
        yield mode.begin


def _track(module: nn.Module, name: str, stack: list[str], cleanup: contextlib.ExitStack) -> None:
    """Keep `name` on the stack while `module` runs."""

    def enter(*_: object) -> None:
        stack.append(name)

    def leave(*_: object) -> None:
        if stack:
            stack.pop()

    cleanup.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
    cleanup.callback(module.register_forward_hook(leave).remove)


class _ActivationMode(TorchFunctionMode):
    """Calls the handler for floating-point, batched arguments of the chosen functions."""

    def __init__(self, ops: frozenset[str], handler: Handler, stack: list[str]) -> None:
        super().__init__()
        self.ops, self.handler, self.stack = ops, handler, stack
        self.batch = 1
        self.seen: Counter[Location] = Counter()

    def begin(self, batch: int) -> None:
        """A forward pass of `batch` points starts."""
        self.batch = batch
        self.stack.clear()
        self.seen.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = _canonical(getattr(func, "__name__", ""))
        if op in self.ops:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor):
                self._tell(op, bare(x), args[1:], kwargs)
        return func(*args, **kwargs)

    def _tell(self, op: str, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if x.is_floating_point() and x.dim() >= 2 and x.shape[0] % self.batch == 0:
            location = self._locate(op)
            site = ActivationSite(location, self.seen[location])
            self.seen[location] += 1
            with below():
                self.handler(site, ActivationCall(op, x.detach(), args, kwargs))

    def _locate(self, op: str) -> Location:
        """Module path, and the nearest line that is neither torch's nor ours."""
        module = self.stack[-1] if self.stack else ""
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not _CALLER:
            name = frame.f_code.co_filename
            if not name.startswith((_TORCH_FOLDER, "<")) and name != __file__:
                return Location(module, op, shown_path(name), frame.f_lineno)
            frame = frame.f_back  # type: ignore[assignment]
        return Location(module, op)


def _canonical(name: str) -> str:
    """`tanh` for tanh, tanh_, Tensor.tanh and aten.tanh.default."""
    plain = name.partition(".")[0]
    plain = plain.removesuffix("_") if not plain.endswith("__") else plain
    return _ALIASES.get(plain, plain)


def describe(location: Location) -> str:
    """`tanh in layers.1 (net.py:14)`, as far as known."""
    words = location.op or "activation"
    if location.module:
        words += f" in {location.module}"
    if location.file is not None:
        words += f" ({Path(location.file).name}:{location.line})"
    return words
