"""Everything that a model holds and could change: its modules, their attributes, tensors, arrays and generators."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

#: Objects that are looked at, at most; a model that holds more is put back as far as these go.
MOST_OBJECTS = 200_000
#: Packages whose objects are not opened, modules of torch aside: their inside is not the model's.
_CLOSED = frozenset({*sys.stdlib_module_names, "builtins", "maskaudit", "numpy", "torch"})
_PLAIN = (int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device)


class Belongings:
    """What can be reached from a model, as it was when this was made.

    From modules and objects of the model's own classes the way goes on through attributes, lists, tuples, dictionaries
    and sets, from functions to the modules and tensors that they close over: the list in which a function notes its
    calls is the caller's. Tensors, arrays and private random generators are copied.
    """

    def __init__(self, model: object) -> None:
        self._held: dict[int, object] = {}  # held, so that no other object takes its address
        self._undo: list[Callable[[], object]] = []
        self._undo_chance: list[Callable[[], object]] = []
        pending: list[object] = [model]
        while pending and len(self._held) < MOST_OBJECTS:
            item = pending.pop()
            if not isinstance(item, _PLAIN) and id(item) not in self._held:
                self._held[id(item)] = item
                pending.extend(self._keep(item))

    def restore(self, *, generators: bool = True) -> None:
        """Put everything back that is no longer so; without `generators` the model's own go on drawing."""
        with contextlib.ExitStack() as stack:  # one that cannot be put back does not keep the others from it
            for undo in [*self._undo, *(self._undo_chance if generators else ())]:
                stack.callback(undo)

    def _keep(self, item: Any) -> Iterable[object]:
        """Note one object; what it holds."""
        if isinstance(item, Tensor):
            self._undo.append(_Value(item).restore)
        elif isinstance(item, torch.jit.ScriptModule):
            return self._scripted(item)
        elif isinstance(item, (dict, list, set, deque)):
            return self._container(item)
        elif isinstance(item, tuple):
            return item
        elif isinstance(item, np.ndarray):
            self._array(item)
        elif isinstance(item, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
            self._generator(item)
        else:
            return _parts(item)
        return ()

    def _scripted(self, module: torch.jit.ScriptModule) -> Iterator[object]:
        """Compiled code has tensors and a mode, if it is not frozen, and no attributes of Python."""
        training = getattr(module, "training", None)

        def restore() -> None:
            if training is not None and module.training != training:
                module.training = training

        self._undo.append(restore)
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        yield from module.children()

    def _container(self, item: Any) -> Iterable[object]:
        if isinstance(item, dict):
            before = dict(dict.items(item))
            self._undo.append(lambda: _refill_dict(item, before))
            return before.values()
        if isinstance(item, set):
            members = set(item)
            self._undo.append(lambda: _refill_set(item, members))
            return ()
        entries = list(item)
        self._undo.append(lambda: _refill_list(item, entries))
        return entries

    def _array(self, item: np.ndarray[Any, Any]) -> None:
        if item.dtype.hasobject or not item.flags.writeable:
            return
        before = item.copy()

        def restore() -> None:
            if item.tobytes() != before.tobytes():
                np.copyto(item, before)

        self._undo.append(restore)

    def _generator(self, item: Any) -> None:
        if isinstance(item, torch.Generator):
            state = item.get_state()
            self._undo_chance.append(lambda: item.set_state(state))
        elif isinstance(item, np.random.Generator):
            bits, bit_state = item.bit_generator, item.bit_generator.state
            self._undo_chance.append(lambda: setattr(bits, "state", bit_state))
        elif isinstance(item, np.random.RandomState):
            numpy_state = item.get_state()
            self._undo_chance.append(lambda: item.set_state(numpy_state))
        else:
            python_state = item.getstate()
            self._undo_chance.append(lambda: item.setstate(python_state))


def _parts(item: Any) -> tuple[object, ...]:
    """What an object holds that is neither container nor tensor."""
    if isinstance(item, MethodType):
        return (item.__self__, item.__func__)
    if isinstance(item, functools.partial):
        return (item.func, item.args, item.keywords)
    if isinstance(item, FunctionType):
        cells = []
        for cell in item.__closure__ or ():
            with contextlib.suppress(ValueError):  # not filled yet
                cells.append(cell.cell_contents)
        return tuple(cell for cell in cells if isinstance(cell, (nn.Module, Tensor, FunctionType, MethodType)))
    if isinstance(item, nn.Module) or type(item).__module__.partition(".")[0] not in _CLOSED:
        held = getattr(item, "__dict__", None)
        return (held,) if isinstance(held, dict) else ()
    return ()


def _refill_dict(item: dict[Any, Any], before: dict[Any, Any]) -> None:
    if len(item) != len(before) or any(dict.get(item, key, item) is not value for key, value in before.items()):
        item.clear()
        item.update(before)


def _refill_set(item: set[Any], before: set[Any]) -> None:
    if item != before:
        item.clear()
        item.update(before)


def _refill_list(item: Any, before: list[Any]) -> None:
    if len(item) != len(before) or any(a is not b for a, b in zip(item, before, strict=True)):
        item.clear()
        item.extend(before)


class _Value:
    """A tensor with its memory, content, gradient and requires_grad flag."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.requires_grad = tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.memory, self.content = _copied(tensor)
        self.grad_content = None if self.grad is None else _copied(self.grad)[1]

    def restore(self) -> None:
        tensor = self.tensor
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if self.memory is not None and self.content is not None:
                if _elsewhere(tensor, self.memory):
                    tensor.data = self.memory
                _refill(tensor, self.content)
            if self.grad is not None and self.grad_content is not None:
                _refill(self.grad, self.grad_content)
        if tensor.is_leaf and not tensor.is_inference():
            if tensor.grad is not self.grad:
                tensor.grad = self.grad
            if tensor.requires_grad != self.requires_grad:
                tensor.requires_grad_(self.requires_grad)


def _copied(tensor: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The same memory under another name, and a copy of what is in it; None for tensors that have none yet."""
    if is_lazy(tensor) or tensor.is_meta:
        return None, None
    with torch.no_grad():
        memory = tensor.detach()
        return memory, memory.clone()


def _elsewhere(tensor: Tensor, memory: Tensor) -> bool:
    """Whether a tensor no longer lies where it lay, or as it lay there."""
    if tensor.device != memory.device or tensor.shape != memory.shape or tensor.dtype != memory.dtype:
        return True
    strided = tensor.layout == memory.layout == torch.strided
    return strided and (tensor.data_ptr() != memory.data_ptr() or tensor.stride() != memory.stride())


def _refill(tensor: Tensor, content: Tensor) -> None:
    """Give `tensor` its content back, in place."""
    try:
        same = torch.equal(tensor, content)
    except (RuntimeError, NotImplementedError):  # layouts that torch cannot compare
        same = False
    if not same:
        tensor.copy_(content)
