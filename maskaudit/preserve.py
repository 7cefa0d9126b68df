"""Leave no trace: the audited model and the caller's random state are put back as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

#: What a forward pass or an observer may add to or replace in a module.
_TABLES = (
    "_parameters",
    "_buffers",
    "_modules",
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
            seed_generators(seed)
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
def open_checkpoints() -> Iterator[None]:
    """Blocks under `torch.utils.checkpoint` with `use_reentrant=True` just run while the context is open.

    Such a block runs without a graph and again in a backward pass that must be a plain `.backward()`, which adds to the
    gradients of the parameters. Run openly it gives the same values and input gradients, for more memory.
    """
    original = CheckpointFunction.__dict__.get("apply")
    CheckpointFunction.apply = staticmethod(_run_block)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if original is None:
            del CheckpointFunction.apply
        else:
            CheckpointFunction.apply = original  # type: ignore[method-assign]


def _run_block(run_function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    return run_function(*args)


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


def seed_generators(seed: int) -> None:
    """Seed all global generators, for whoever restores them later."""
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:  # the same without the stack trace that torch keeps for a CUDA that is not there yet
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All global generators seeded inside, restored afterwards."""
    with preserved_random_state():
        seed_generators(seed)
        yield


def drawn_since(seed: int) -> tuple[str, ...]:
    """Names of the global generators that have moved since `seed_generators(seed)`; all are left a little further on.

    Their states are large: what each would draw next says as much.
    """
    after = _next_draws()
    seed_generators(seed)
    return tuple(name for name, first in _next_draws().items() if first != after[name])


def _next_draws() -> dict[str, object]:
    draws: dict[str, object] = {
        "torch": float(torch.rand((), dtype=torch.float64, device="cpu")),
        "numpy": np.random.random_sample(),
        "random": random.random(),
    }
    if torch.cuda.is_available():
        draws["torch.cuda"] = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return draws


class _ModuleSnapshot:
    """One module's own state (not its children's)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = getattr(module, "training", None)  # frozen TorchScript has no mode
        self.full_backward_hook = getattr(module, "_is_full_backward_hook", None)
        tables = () if isinstance(module, torch.jit.ScriptModule) else _TABLES
        self.tables = {table: dict(getattr(module, table)) for table in tables if hasattr(module, table)}
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        self.values = [_Value(tensor) for tensor in tensors]

    def restore(self) -> None:
        for name, content in self.tables.items():
            table = getattr(self.module, name)
            table.clear()
            table.update(content)
        if self.tables:
            self.module._is_full_backward_hook = self.full_backward_hook
        for value in self.values:
            value.restore()
        if self.training is not None and self.module.training != self.training:
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
            _refill(self.tensor, self.content)
            if self.grad is not None and self.grad_content is not None:
                _refill(self.grad, self.grad_content)
        self.tensor.grad = self.grad
        if self.tensor.is_leaf and self.tensor.requires_grad != self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)


def _refill(tensor: Tensor, content: Tensor) -> None:
    """Give `tensor` its content back, in place unless its shape or type was changed too."""
    if tensor.shape != content.shape or tensor.dtype != content.dtype:
        tensor.data = content
    elif not torch.equal(tensor, content):
        tensor.copy_(content)
