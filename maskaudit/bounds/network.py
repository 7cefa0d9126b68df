"""A network as steps that bounds know: affine maps, and activations that rise in every coordinate.

All else is written in these: max(a, b) = a + relu(b − a), a clamp is a difference of two rectifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[..., Tensor]
"""Batches (n, …), one for each step that is read → batch (n, …)."""


class UnboundableError(Exception):
    """A network cannot be bounded; the message says why."""


@dataclass(frozen=True)
class Step:
    """One step of a network, of which no point depends on another.

    Attributes:
        name: of the operation, for people.
        reads: numbers of the steps whose results it takes.
        call: what it computes.
        widen: of an affine map the same with the magnitudes of its coefficients and without its constant, which takes
            half-widths of intervals to the half-widths of theirs; None for an activation.
        shape: of its result for one point.
        terms: how many products each result sums, for what rounding can add.
        hull: steps and a function that rises in all of them and equals this step's result; intervals through single
            steps would forget how they belong together.
        constant: of an affine map the value at zero (1, …).
    """

    name: str
    reads: tuple[int, ...]
    call: Map
    widen: Map | None
    shape: torch.Size
    terms: int = 1
    hull: tuple[tuple[int, ...], Map] | None = None
    constant: Tensor | None = None


@dataclass(frozen=True)
class Network:
    """Steps in order, the input first and the output, class scores (K,) for each point, last.

    Attributes:
        finish: what the model does to the scores and keeps their order, such as a softmax.
    """

    steps: tuple[Step, ...]
    finish: Map

    def values(self, x: Tensor) -> list[Tensor]:
        """The result of every step for inputs (n, …), float64."""
        held = [x]
        for step in self.steps[1:]:
            held.append(step.call(*(held[number] for number in step.reads)))
        return held

    def __call__(self, x: Tensor) -> Tensor:
        """Class scores (n, K), the order of which is the model's."""
        return self.values(x)[-1]

    @property
    def activations(self) -> list[int]:
        """Numbers of the steps that are no affine map, in order."""
        return [number for number, step in enumerate(self.steps) if number and step.widen is None]

    @property
    def rectifiers(self) -> int:
        """Units of the activations of one point."""
        return sum(self.steps[number].shape.numel() for number in self.activations)

    def adjoint(self, number: int, rows: Tensor) -> Sequence[Tensor]:
        """Coefficients (n, …) on the result of an affine step as coefficients on what it reads."""
        step = self.steps[number]
        with torch.enable_grad():
            zeros = [rows.new_zeros((len(rows), *self.steps[read].shape), requires_grad=True) for read in step.reads]
            return torch.autograd.grad(step.call(*zeros), zeros, rows, create_graph=rows.requires_grad)
