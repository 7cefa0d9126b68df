"""Masks that work on the input in a loop before it is classified."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskaudit.data import load_data
from maskaudit.zoo.masks.base import FrontMask


class Purification(FrontMask):
    """Gradient steps on an energy before classification: ½‖r‖², r the part of the input outside a subspace.

    The energy's minimum is the projection onto the leading principal components of the training points
    (Bhagoji et al. 2018). Following its gradient at test time, with autograd inside the forward pass and the
    result off the graph, is how purifiers work (Samangouei et al. 2018, Defense-GAN; Shi et al. 2021).

    Args:
        mean, basis: mean (D,) and components (D, R) of the training points.
        steps, rate: number and size of the steps.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, basis: Tensor, steps: int = 10, rate: float = 0.2) -> None:
        super().__init__(network)
        self.steps, self.rate = steps, rate
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)

    def front(self, x: Tensor) -> Tensor:
        """The purified input, off the graph."""
        clean = x.detach().flatten(1)
        for _ in range(self.steps):
            clean = clean.detach().requires_grad_(True)
            with torch.enable_grad():
                energy = 0.5 * self._outside(clean).square().sum()
                (slope,) = torch.autograd.grad(energy, clean)
            clean = clean.detach() - self.rate * slope
        return clean.clamp(0, 1).view(x.shape)

    def _outside(self, flat: Tensor) -> Tensor:
        centred = flat - self.mean
        return centred - centred @ self.basis @ self.basis.T


def purified(network: nn.Module, data: str, components: int = 20) -> Purification:
    """A network behind a purifier that is fitted to the training points of its data."""
    flat = load_data(data, split="train").x.flatten(1).double()
    mean = flat.mean(dim=0)
    _, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean))
    return Purification(network, mean.float(), vectors[:, -components:].float())


class ChaoticFront(FrontMask):
    """x + amplitude · (c − ½), c the logistic map 4c(1 − c) iterated from x: slopes grow like 2ⁿ, the change is small.

    An iterated preprocessing step is how exploding gradients come about (Athalye et al. 2018, section 3.1);
    the map is May 1976, "Simple mathematical models with very complicated dynamics".
    """

    def __init__(self, network: nn.Module, amplitude: float = 0.1, steps: int = 14) -> None:
        super().__init__(network)
        self.amplitude, self.steps = amplitude, steps

    def front(self, x: Tensor) -> Tensor:
        """The disturbed input."""
        state = 0.05 + 0.9 * x
        for _ in range(self.steps):
            state = 4 * state * (1 - state)
        return x + self.amplitude * (state - 0.5)
