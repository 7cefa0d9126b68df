"""Leave no trace: the audited model and the caller's world are put back as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from maskaudit.target.model_contents import Belongings
from maskaudit.target.process_state import RandomState, kept_world


@contextlib.contextmanager
def preserved(model: nn.Module | Callable[..., Any], *, seed: int | None = None) -> Iterator[None]:
    """Restore, on leaving, everything that the model holds and everything global: see `Belongings` and `World`.

    Args:
        model: the audited module or callable.
        seed: if given, seeds torch, numpy and `random` inside the context.
    """
    with kept_world():
        belongings = Belongings(model)
        try:
            if seed is not None:
                seed_generators(seed)
            yield
        finally:
            belongings.restore()


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
    state = RandomState()
    try:
        yield
    finally:
        state.restore()


def seed_generators(seed: int) -> None:
    """Seed all global generators, for callers that restore them later."""
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
