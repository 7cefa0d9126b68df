"""Leave no trace: the audited model and the caller's random state are put back as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


@contextlib.contextmanager
def preserved(model: nn.Module | Callable[..., Any], *, seed: int | None = None) -> Iterator[None]:
    """Restore, on leaving, every mode flag, parameter, buffer, gradient, hook and random generator.

    Args:
        model: the audited module; for a plain callable only the random state is kept.
        seed: if given, seeds torch, numpy and `random` inside the context.
    """
    with preserved_random_state():
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        if not isinstance(model, nn.Module):
            yield
            return
        snapshot = [_ModuleSnapshot(module) for module in model.modules()]
        try:
            yield
        finally:
            for part in snapshot:
                part.restore()


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the global generators of torch (CPU and CUDA), numpy and `random` on leaving."""
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy_state = np.random.get_state()
    python_state = random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class _ModuleSnapshot:
    """One module's own state (not its children's)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = module.training
        self.scripted = isinstance(module, torch.jit.ScriptModule)
        self.parameters = dict(module.named_parameters(recurse=False))
        self.buffers = dict(module.named_buffers(recurse=False))
        self.values = {name: _Value(tensor) for name, tensor in {**self.parameters, **self.buffers}.items()}
        self.hooks = {} if self.scripted else {
            table: dict(getattr(module, table)) for table in _HOOK_TABLES if hasattr(module, table)
        }

    def restore(self) -> None:
        if not self.scripted:
            for table, hooks in self.hooks.items():
                current = getattr(self.module, table)
                current.clear()
                current.update(hooks)
            for name, parameter in self.parameters.items():
                self.module._parameters[name] = parameter  # type: ignore[assignment]
            for name, buffer in self.buffers.items():
                self.module._buffers[name] = buffer
        for value in self.values.values():
            value.restore()
        if self.module.training != self.training:
            self.module.training = self.training


class _Value:
    """A tensor with its content, gradient and requires_grad flag."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.content = tensor.detach().clone()
        self.requires_grad = tensor.requires_grad
        self.grad = tensor.grad
        self.grad_content = None if tensor.grad is None else tensor.grad.detach().clone()

    def restore(self) -> None:
        with torch.no_grad():
            if not torch.equal(self.tensor, self.content):
                self.tensor.copy_(self.content)
            if self.grad is not None and self.grad_content is not None and not torch.equal(self.grad, self.grad_content):
                self.grad.copy_(self.grad_content)
        self.tensor.grad = self.grad
        if self.tensor.is_leaf and self.tensor.requires_grad != self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
