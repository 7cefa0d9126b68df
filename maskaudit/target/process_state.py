"""What is global to the process and can be changed by a model's code or by ours: read, and put back.

`TorchFlags` is the small part that changes what arithmetic means; a target puts it back after every pass, since our
own code would compute with it. `World` is all of it, for the end of an audit.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack, _pop_torch_function_stack
from torch.backends import cuda, cudnn, mha, mkldnn, nnpack
from torch.nn.modules import module as torch_module
from torch.utils import deterministic
from torch.utils._python_dispatch import _pop_mode

#: Something global: how it is read, and how a value that was read is put back.
Setting = tuple[Callable[[], Any], Callable[[Any], object]]

#: Guards that undo an inference mode which was entered and never left; they hold as long as the process.
_ENTERED: list[Any] = []
#: The smallest positive float64: zero in arithmetic that flushes denormal numbers.
_SMALLEST = [5e-324]


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch's older and newer settings say different things
        return None


def _set_matmul_precision(value: str | None) -> None:
    if value is not None:
        torch.set_float32_matmul_precision(value)


def _attribute(owner: Any, name: str) -> Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _autocast(device: str) -> Setting:
    def read() -> tuple[bool, torch.dtype]:
        return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return read, write


def _environment(value: dict[str, str]) -> None:
    for name in set(os.environ) - set(value):
        del os.environ[name]
    os.environ.update(value)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # removed meanwhile
        return None


def _umask() -> int:
    mask = os.umask(0)  # it cannot be read otherwise
    os.umask(mask)
    return mask


def _go_to(folder: str | None) -> None:
    if folder is not None:
        with contextlib.suppress(OSError):
            os.chdir(folder)


def _filters(value: list[Any]) -> None:
    with warnings.catch_warnings():  # the only public way to make Python forget what it derived from the old filters
        pass
    warnings.filters[:] = value  # type: ignore[index]


def _handlers(value: dict[int, Any]) -> None:
    for number, handler in value.items():
        if handler is not None and handler is not signal.getsignal(number):  # None: set by C code
            with contextlib.suppress(ValueError, OSError):  # not the main thread, whose handlers nobody else can change
                signal.signal(number, handler)


def _default_device() -> torch.device | None:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _contents(of: Any) -> Setting:
    """The items of a global list or dictionary, which stays the same object."""
    if isinstance(of, dict):
        return lambda: dict(of), lambda value: _refill(of, value)
    return lambda: list(of), lambda value: of.__setitem__(slice(None), value)


def _refill(of: dict[Any, Any], value: dict[Any, Any]) -> None:
    of.clear()
    of.update(value)


_ARITHMETIC: tuple[Setting, ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (_deterministic, _set_deterministic),
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    (lambda: _SMALLEST[0] * 1.0 == 0.0, torch.set_flush_denormal),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    _autocast("cpu"),
    _autocast("cuda"),
)
_REST: tuple[Setting, ...] = (
    (_matmul_precision, _set_matmul_precision),
    _attribute(mkldnn, "deterministic"),
    (torch._C._get_nnpack_enabled, nnpack.set_flags),
    _attribute(cudnn, "enabled"),
    _attribute(cudnn, "benchmark"),
    _attribute(cudnn, "deterministic"),
    _attribute(cudnn, "allow_tf32"),
    _attribute(cuda.matmul, "allow_tf32"),
    _attribute(cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    _attribute(cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    _attribute(deterministic, "fill_uninitialized_memory"),
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
    _attribute(torch.backends.quantized, "engine"),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    (np.geterr, lambda value: np.seterr(**value)),
    (np.get_printoptions, lambda value: np.set_printoptions(**value)),
    _contents(vars(torch._tensor_str.PRINT_OPTS)),
    (lambda: list(warnings.filters), _filters),
    (lambda: dict(os.environ), _environment),
    (_folder, _go_to),
    (_umask, os.umask),
    _contents(sys.path),
    *(_attribute(sys, name) for name in ("stdin", "stdout", "stderr", "excepthook")),
    (lambda: {number: signal.getsignal(number) for number in signal.valid_signals()}, _handlers),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    _attribute(logging.root, "level"),
    _attribute(logging.root.manager, "disable"),
    (torch.is_warn_always_enabled, torch.set_warn_always),
    (mha.get_fastpath_enabled, mha.set_fastpath_enabled),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (gc.get_threshold, lambda value: gc.set_threshold(*value)),
    (gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
    *(_contents(table) for name, table in vars(torch_module).items() if name.startswith("_global_") and
      isinstance(table, dict)),
)  # fmt: skip


@dataclass(frozen=True)
class TorchFlags:
    """Default type, threads, determinism and the like, as they were when they were read."""

    values: tuple[Any, ...]

    @classmethod
    def read(cls) -> TorchFlags:
        """The settings of torch as they are now."""
        return cls(tuple(read() for read, _ in _ARITHMETIC))

    def restore(self) -> None:
        """Set back what has changed since they were read."""
        _restore(_ARITHMETIC, self.values)


class Modes:
    """Whether gradients are recorded, inference mode, the default device, and which modes see torch's operations.

    Code can enter one and never leave it; a tracer's own modes are there before the code is called, and stay.
    """

    def __init__(self) -> None:
        self._recording, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._device = _default_device()
        self._functions, self._dispatches = _len_torch_function_stack(), _len_torch_dispatch_stack()

    def restore(self) -> None:
        """Leave what was entered since, innermost first."""
        if _default_device() != self._device:  # a function mode as well
            torch.set_default_device(self._device)
        while _len_torch_function_stack() > self._functions:
            _pop_torch_function_stack()
        while _len_torch_dispatch_stack() > self._dispatches:
            _pop_mode()
        if torch.is_inference_mode_enabled() != self._inference:
            _ENTERED.append(torch._C._InferenceMode(self._inference))  # ends with the guard that is made here
        if torch.is_grad_enabled() != self._recording:
            torch.set_grad_enabled(self._recording)


class World:
    """Everything global that is put back at the end: flags, generators, environment, warnings, hooks on all modules."""

    def __init__(self) -> None:
        self._flags = TorchFlags.read()
        self._values = tuple(read() for read, _ in _REST)
        self._modes = Modes()
        self._random = RandomState()

    def restore(self) -> None:
        """Set back what has changed since this was made."""
        with contextlib.ExitStack() as stack:  # one that cannot be put back does not keep the others from it
            stack.callback(self._random.restore)
            stack.callback(self._flags.restore)
            stack.callback(_restore, _REST, self._values)
            stack.callback(self._modes.restore)


class RandomState:
    """The global generators of torch (CPU and CUDA), numpy and `random`, as they were when this was made."""

    def __init__(self) -> None:
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self._numpy = np.random.get_state()
        self._python = random.getstate()

    def restore(self) -> None:
        """Give all generators the state that was noted."""
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        np.random.set_state(self._numpy)
        random.setstate(self._python)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """`number` CPU threads of torch while the context is open; those that there were afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def kept_world() -> Iterator[None]:
    """Put everything global back on leaving, also after an exception."""
    world = World()
    try:
        yield
    finally:
        world.restore()


def _restore(settings: tuple[Setting, ...], values: tuple[Any, ...]) -> None:
    for (read, write), value in zip(settings, values, strict=True):
        if read() != value:
            write(value)
