"""What one pass through a model is: how it is counted, what its failures are called, how large its batch is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskaudit import foreign
from maskaudit.errors import GradientError, InputError, MaskauditError, ModelError, first_line, message
from maskaudit.target.process_state import Modes

#: How torch says that memory ran out, where it has no exception of its own for it.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
#: Points per pass, and numbers per pass that lower it for large inputs: with a gradient a pass holds far more.
BATCH, BATCH_ELEMENTS = 256, 2**22


class EndOfPass(BaseException):
    """Base of what ends a forward pass from outside; never taken for an error of the model."""


@dataclass
class PassLedger:
    """Passes through the model, counted in points (a batch of 32 counts 32)."""

    forwards: int = 0
    backwards: int = 0

    def since(self, earlier: PassLedger) -> PassLedger:
        """What was spent since a copy taken earlier."""
        return PassLedger(self.forwards - earlier.forwards, self.backwards - earlier.backwards)

    def add(self, spent: PassLedger) -> None:
        """Count what was spent elsewhere, or before an interruption."""
        self.forwards += spent.forwards
        self.backwards += spent.backwards

    def copy(self) -> PassLedger:
        """The counts of this moment; later passes leave them."""
        return replace(self)


def usual_batch(point_shape: Sequence[int]) -> int:
    """Points per pass where no number is given: `BATCH`, fewer for large inputs (27 of 3 × 224 × 224)."""
    return max(1, min(BATCH, BATCH_ELEMENTS // max(1, math.prod(point_shape))))


class Normaliser:
    """(x − mean) / std per channel, before the model; what is not given is left out."""

    def __init__(self) -> None:
        self._constants: dict[tuple[tuple[float, ...], torch.dtype], Tensor] = {}

    def __call__(self, x: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Tensor:
        """Inputs (N, C, …) as the model takes them.

        Raises:
            InputError: when there are neither one nor C entries.
        """
        if mean is not None:
            x = x - self._constant("--mean", mean, x)
        if std is not None:
            x = x / self._constant("--std", std, x)
        return x

    def _constant(self, name: str, values: tuple[float, ...], x: Tensor) -> Tensor:
        """The values, shaped for `x`; brought to its device once, since that waits for an accelerator."""
        channels, key = x.shape[1], (values, x.dtype)
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} entries, but the inputs have {channels} channels.")
        if key not in self._constants:
            self._constants[key] = torch.tensor(values, dtype=x.dtype, device=x.device)
        return self._constants[key].view(1, -1, *[1] * (x.dim() - 2))


def differentiate(
    total: Tensor, inputs: Sequence[Tensor], *, retain_graph: bool = False, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients of a sum with respect to tensors, None where it does not depend on one: `torch.autograd.grad`.

    The backward pass runs the audited model's code, which may raise whatever it likes.

    Raises:
        GradientError: when it raises.
        ModelError: when memory runs out.
    """
    modes = Modes()
    try:
        with foreign.Call():
            return torch.autograd.grad(
                total, tuple(inputs), retain_graph=retain_graph or create_graph, create_graph=create_graph,
                allow_unused=True,
            )  # fmt: skip
    except BaseException as error:
        if not of_the_model(error):
            raise
        kind = ModelError if out_of_memory(error) else GradientError
        raise kind(sentence_of(error, "in its backward pass")) from error
    finally:
        modes.restore()


def of_the_model(error: BaseException) -> bool:
    """Whether an exception is the model's failure: not the user's interruption, our own error, or `EndOfPass`."""
    return foreign.raised_by_model(error) and not isinstance(error, (MaskauditError, EndOfPass))


def failed_itself(error: Exception) -> bool:
    """Whether an error says that the model's code raised, rather than that it gave what cannot be used."""
    return type(error) is ModelError and error.__cause__ is not None and of_the_model(error.__cause__)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, says that memory ran out: no property of the model."""
    if error is None:
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = message(error).lower() if isinstance(error, (RuntimeError, ModelError)) else ""
    return any(phrase in words for phrase in _OUT_OF_MEMORY) or out_of_memory(error.__cause__)


def sentence_of(error: BaseException, where: str) -> str:
    """What the model raised, in one line."""
    return f"The model raised {type(error).__name__} {where}: {first_line(error)}".removesuffix(": ")
