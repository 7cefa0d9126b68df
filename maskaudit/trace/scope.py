"""Where in the program an op runs: the module being executed and the user's source line."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from maskaudit.files import shown_path
from maskaudit.target import model, scores
from maskaudit.target.preserve import open_checkpoints

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = Path(__file__).parents[1]
#: Code that runs a model but is not part of it, and the modules that stand for the ops of a converted file.
_OURS = (*(str(_PACKAGE / name) for name in ("trace", "repairs")), str(Path(scores.__file__)))
_LOADING = str(_PACKAGE / "loading")
_TARGET = str(Path(model.__file__))
_FUNCTION_FILE = str(Path(_TORCH) / "autograd" / "function.py")

PreHook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]
PostHook = Callable[[nn.Module, Any], Any]
FrameKind = Literal["target", "function", "module", "generated", "converted", "ours", "user"]


@dataclass(frozen=True)
class Frame:
    """The user's frame of an op.

    Attributes:
        file, line: innermost frame outside torch and maskaudit; None where the model has no code of its own.
        function: the custom autograd Function in whose forward the op runs, if any.
        arguments: what that Function was applied to.
        outside: whether the op belongs to maskaudit's target, not to the model.
        module: module path that an exported graph remembers for the op; None where the modules themselves run.
    """

    file: str | None
    line: int | None
    function: type[torch.autograd.Function] | None = None
    arguments: tuple[Any, ...] = ()
    outside: bool = False
    module: str | None = None


def user_site() -> Frame:
    """Walk the stack of the caller up to the target and find the user's place in it."""
    frame: FrameType | None = sys._getframe(1)
    file: str | None = None
    line: int | None = None
    function: type[torch.autograd.Function] | None = None
    arguments: tuple[Any, ...] = ()
    inside = False
    while frame is not None:
        kind = _frame_kind(frame.f_code.co_filename)
        if kind == "target":
            break
        if kind == "function":
            found = frame.f_locals.get("cls")
            if frame.f_code.co_name == "apply" and isinstance(found, type):
                function, arguments = found, tuple(frame.f_locals.get("args", ()))
        elif kind == "user" and file is None:
            file, line = shown_path(frame.f_code.co_filename), frame.f_lineno
        elif kind == "generated" and file is None:
            exported = exported_site(frame)
            if exported is not None:
                return exported
        elif kind == "converted" and file is None:
            file, line = innermost_user_line(str(getattr(frame.f_locals.get("self"), "stack_trace", "")))
        inside = inside or kind == "module"
        frame = frame.f_back
    outside = file is None and not inside and frame is not None
    return Frame(file, line, function, arguments, outside)


@cache
def _frame_kind(filename: str) -> FrameKind:
    if filename == _TARGET:
        return "target"
    if filename == _FUNCTION_FILE:
        return "function"
    if filename.startswith(_TORCH):
        return "module" if "/nn/modules/" in filename.replace("\\", "/") else "ours"
    if filename.startswith("<eval_with_key>"):
        return "generated"
    if filename.startswith(_LOADING):
        return "converted"
    return "ours" if filename.startswith(("<", *_OURS)) else "user"


def is_users(filename: str) -> bool:
    """Whether a file of Python code belongs neither to torch nor to us."""
    return _frame_kind(filename) == "user"


def exported_site(frame: FrameType) -> Frame | None:
    """The place that an exported graph (`torch.export`, `.pt2`) recorded for the op which its generated code runs.

    torch.fx keeps, per generated line, the graph node it came from; the node's `nn_module_stack` and
    `stack_trace` are those of the model that was exported.
    """
    graph_module: Any = frame.f_locals.get("self")
    lines = getattr(graph_module, "_lineno_map", None)
    if not isinstance(lines, dict) or not hasattr(graph_module, "graph"):
        return None
    position = lines.get(frame.f_lineno - getattr(graph_module, "_prologue_start", 0))
    nodes = list(graph_module.graph.nodes)
    if position is None or not 0 <= position < len(nodes):
        return None
    meta = nodes[position].meta
    stack = meta.get("nn_module_stack")
    entries = list(stack.values()) if isinstance(stack, dict) else []
    module = str(entries[-1][0]) if entries and isinstance(entries[-1], tuple) else None
    file, line = innermost_user_line(str(meta.get("stack_trace") or ""))
    return Frame(file, line, module=module)


_TRACEBACK_LINE = re.compile(
    r'File "(?P<file>[^"]+)", line (?P<line>\d+)|^(?P<file2>[^\s(][^(]*)\((?P<line2>\d+)\):', re.M
)


def innermost_user_line(trace: str, *, innermost_first: bool = False) -> tuple[str | None, int | None]:
    """File and line of the innermost frame outside torch in a printed stack; (None, None) if there is none.

    Reads both forms that torch prints: `File "net.py", line 3, in forward` and `net.py(3): forward`.
    """
    found = [(m["file"] or m["file2"], int(m["line"] or m["line2"])) for m in _TRACEBACK_LINE.finditer(trace)]
    users = [(file, line) for file, line in found if not _is_torch_file(file)]
    if not users:
        return None, None
    file, line = users[0] if innermost_first else users[-1]
    return shown_path(file), line


def _is_torch_file(file: str) -> bool:
    """Whether a path recorded elsewhere, perhaps on another machine, belongs to torch itself."""
    return (
        file.startswith((_TORCH, "<")) or re.search(r"(site|dist)-packages/torch/", file.replace("\\", "/")) is not None
    )


def as_written(model: Any) -> Any:
    """The module that was given to `torch.compile`; any other model as it is."""
    dynamo = sys.modules.get("torch._dynamo")  # else nothing can have been compiled
    return model._orig_mod if dynamo is not None and isinstance(model, dynamo.OptimizedModule) else model


@contextlib.contextmanager
def graph_visible() -> Iterator[None]:
    """Every op leaves an autograd node: TorchScript runs without its optimiser, reentrant checkpoints open.

    What was compiled by `torch.compile` runs as it was written.
    """
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # modules within may have been compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(open_checkpoints())
        stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
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
