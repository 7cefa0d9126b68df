"""Where in the program an op runs: the module being executed and the user's source line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from maskaudit.files import shown_path

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = Path(__file__).parents[1]
_OURS = (str(_PACKAGE / "trace"), str(_PACKAGE / "repairs"))
_TARGET = str(_PACKAGE / "target.py")
_FUNCTION_FILE = str(Path(_TORCH) / "autograd" / "function.py")

PreHook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]
PostHook = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Site:
    """The user's frame of an op.

    Attributes:
        file, line: innermost frame outside torch and maskaudit; None where the model has no code of its own.
        function: the custom autograd Function in whose forward the op runs, if any.
        arguments: what that Function was applied to.
        call_line: the user's line that applied it.
        outside: whether the op belongs to maskaudit's target, not to the model.
    """

    file: str | None
    line: int | None
    function: type[torch.autograd.Function] | None = None
    arguments: tuple[Any, ...] = ()
    call_line: int | None = None
    outside: bool = False


def user_site() -> Site:
    """Walk the stack of the caller up to the target and find the user's place in it."""
    frame = sys._getframe(1)
    file: str | None = None
    line: int | None = None
    function: type[torch.autograd.Function] | None = None
    arguments: tuple[Any, ...] = ()
    call_line: int | None = None
    while frame is not None:
        name = frame.f_code.co_filename
        if name == _TARGET:
            break
        if name == _FUNCTION_FILE:
            found = frame.f_locals.get("cls")
            if frame.f_code.co_name == "apply" and isinstance(found, type):
                function, arguments, call_line = found, tuple(frame.f_locals.get("args", ())), None
        elif not name.startswith((_TORCH, *_OURS)) and not name.startswith("<"):
            if file is None:
                file, line = shown_path(name), frame.f_lineno
            if function is not None and call_line is None:
                call_line = frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return Site(file, line, function, arguments, call_line, outside=file is None and _called_by_target_itself())


def _called_by_target_itself() -> bool:
    """Whether no model frame at all, not even one of torch's modules, lies between us and the target."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name == _TARGET:
            return True
        if name.startswith(_TORCH) and "/nn/modules/" in name.replace("\\", "/"):
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


@contextlib.contextmanager
def graph_visible() -> Iterator[None]:
    """TorchScript runs without its optimiser, so that every op leaves an autograd node of its own."""
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        yield


class ModuleScope:
    """The stack of modules being executed, by path; two global forward hooks keep it.

    Args:
        model: the module whose paths are used; modules outside it go by their class name.
        before: called on the way into a module with (module, inputs), while the caller is still on top;
            may return other inputs.
        after: called on the way out with (module, output), while the module is on top; may return another output.
    """

    def __init__(self, model: object, *, before: PreHook | None = None, after: PostHook | None = None) -> None:
        self.names = {id(m): name for name, m in model.named_modules()} if isinstance(model, nn.Module) else {}
        self.stack: list[str] = []
        self._before, self._after = before, after

    @property
    def path(self) -> str:
        """Path of the module being executed; "" for the root or outside any."""
        return self.stack[-1] if self.stack else ""

    @property
    def inside(self) -> bool:
        """Whether a module is being executed."""
        return bool(self.stack)

    @contextlib.contextmanager
    def watching(self) -> Iterator[ModuleScope]:
        """Keep the stack while the context is open; the hooks are gone afterwards, also after an exception."""
        pre = register_module_forward_pre_hook(self._enter)
        try:
            post = register_module_forward_hook(self._leave, always_call=True)
        except BaseException:
            pre.remove()
            raise
        try:
            yield self
        finally:
            pre.remove()
            post.remove()
            self.stack.clear()

    def _enter(self, module: nn.Module, inputs: Any) -> Any:
        replaced = self._before(module, inputs) if self._before is not None else None
        self.stack.append(self.names.get(id(module), type(module).__name__))
        return replaced

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        replaced = None
        if self._after is not None and output is not None:
            replaced = self._after(module, output)
        if self.stack:
            self.stack.pop()
        return replaced
