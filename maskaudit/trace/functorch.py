"""Models that run under `torch.func`: their code sees wrapped tensors of one point, the graph those of all points."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    get_inplace_requires_grad_allowed,
    get_unwrapped,
    is_functorch_wrapped_tensor,
    peek_interpreter_stack,
    set_inplace_requires_grad_allowed,
)

from maskaudit.trace.calls import tensors_of


def bare(tensor: Tensor) -> Tensor:
    """The tensor of all points below what the code of the model sees."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def bare_tensors(value: Any) -> tuple[Tensor, ...]:
    """All tensors in nested tuples, lists and dictionaries, in order, bare."""
    return tuple(map(bare, tensors_of(value)))


def below() -> contextlib.AbstractContextManager[None]:
    """Work on bare tensors while the context is open, without being given wrapped ones."""
    return contextlib.nullcontext() if peek_interpreter_stack() is None else _below()


@contextlib.contextmanager
def _below() -> Iterator[None]:
    allowed = get_inplace_requires_grad_allowed()
    set_inplace_requires_grad_allowed(True)
    try:
        with torch._C._DisableFuncTorch():
            yield
    finally:
        set_inplace_requires_grad_allowed(allowed)
