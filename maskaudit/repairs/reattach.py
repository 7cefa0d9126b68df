"""Data that leave torch and come back, tied to the tensor that left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskaudit.repairs.graft import graft
from maskaudit.trace.calls import mapped, tensors_of


class Entries:
    """Ties tensors that no call of this pass made to the live tensor they come from; true where there are any.

    Args:
        inputs: the model's input (N, …).
        modules: paths of the modules in which data come back.
        constants: identities of the model's parameters and buffers.
    """

    def __init__(self, inputs: Tensor, modules: set[str], constants: set[int]) -> None:
        self.inputs, self.modules, self.constants = inputs, modules, constants
        self.escaped = False
        self._made: dict[int, Tensor] = {}
        self._live_by_shape: dict[tuple[int, ...], Tensor] = {tuple(inputs.shape): inputs}

    def __bool__(self) -> bool:
        return bool(self.modules)

    def note(self, output: Any, inputs: tuple[Tensor, ...], path: str) -> Any:
        """Remember live tensors by shape; tie a dead output made of nothing live to the live tensor of its shape."""
        for tensor in (*inputs, *tensors_of(output)):
            if tensor.requires_grad and id(tensor) not in self.constants:
                self._live_by_shape[tuple(tensor.shape)] = tensor
            self._made[id(tensor)] = tensor
        if isinstance(output, Tensor) and not inputs and path in self.modules:
            output = self._tied(output)
            self._made[id(output)] = output
        return output

    def tie(self, value: Any, path: str) -> Any:
        """Tensors that no call of this pass made, met in a module with an entry, get their gradient back."""
        if path not in self.modules:
            return value

        def tied(tensor: Tensor) -> Tensor:
            return tensor if tensor is self.inputs or id(tensor) in self._made else self._tied(tensor)

        return mapped(value, tied)

    def _tied(self, tensor: Tensor) -> Tensor:
        source = self._live_by_shape.get(tuple(tensor.shape))
        if source is None and tensor.dim():  # flattened or folded outside: the last live tensor of as many numbers
            alike = [t for t in self._live_by_shape.values() if t.numel() == tensor.numel() and len(t) == len(tensor)]
            with torch.enable_grad():
                source = alike[-1].reshape(tensor.shape) if alike else None
        dead = tensor.is_floating_point() and not tensor.requires_grad and id(tensor) not in self.constants
        if not (self.escaped and dead and source is not None):
            return tensor
        return graft(tensor, source)
