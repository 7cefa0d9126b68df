"""Central differences in float64, against which custom losses are held."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEP = 1e-6


def central_difference(function: Callable[[], Tensor], variable: Tensor) -> Tensor:
    """∂function/∂variable by central differences, changing `variable` in place and putting it back."""
    gradient = torch.empty_like(variable)
    with torch.no_grad():
        for index in range(variable.numel()):
            value = variable.view(-1)[index].item()
            variable.view(-1)[index] = value + STEP
            up = function().item()
            variable.view(-1)[index] = value - STEP
            down = function().item()
            variable.view(-1)[index] = value
            gradient.view(-1)[index] = (up - down) / (2 * STEP)
    return gradient
