"""Masks inside the network: activations that block, and cuts in the middle."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskaudit.data import load_data
from maskaudit.repairs.graft import graft
from maskaudit.zoo.masks.base import Described, Mask
from maskaudit.zoo.masks.outputs import NearestNeighbours

#: Ridge of a readout that is fitted again, as a share of the mean squared feature.
RIDGE = 1e-3
#: Training points that a readout is fitted on, at most.
READOUT_POINTS = 10_000


class SteepTanh(Described):
    """tanh(gain · x): saturated, hence flat, on all but the smallest inputs."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`, in [−1, 1]."""
        return torch.tanh(self.gain * x)

    def unmasked(self) -> nn.Module:
        """The same values with the slope of an ordinary tanh."""
        return Grafted(self, torch.tanh)


class KWinners(Described):
    """k-winners-take-all: only the largest share of the activations passes (Xiao et al. 2020)."""

    def __init__(self, share: float = 0.2) -> None:
        super().__init__()
        self.share = share

    def forward(self, h: Tensor) -> Tensor:
        """Same shape as `h` (N, …), zero but for the winners of each point."""
        flat = h.flatten(1)
        limit = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return (flat * (flat >= limit).to(h.dtype)).view(h.shape)

    def unmasked(self) -> nn.Module:
        """The same values with the slope of the identity."""
        return Grafted(self, lambda h: h)


class SignActivation(Described):
    """sign(h − threshold): binary units, no gradient (Galloway et al. 2018, "Attacking binarized neural networks")."""

    threshold: Tensor

    def __init__(self, threshold: Tensor) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold)

    def forward(self, h: Tensor) -> Tensor:
        """Same shape as `h` (N, D), −1 or 1."""
        return torch.sign(h - self.threshold)

    def unmasked(self) -> nn.Module:
        """The same values with the slope of a tanh."""
        return Grafted(self, lambda h: torch.tanh(h - self.threshold))


class CutBeside(Mask):
    """The network off the graph, parallel to a weak linear term on it: the only gradient is that of the term.

    Athalye et al. 2018, section 3.1: what an attack differentiates is not what decides.
    """

    def __init__(self, network: nn.Module, weight: float = 0.01) -> None:
        super().__init__(network)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        scores: Tensor = self.network(x.detach())
        generator = torch.Generator().manual_seed(0)
        term = torch.randn(x[0].numel(), scores.shape[1], generator=generator).to(x)
        return scores + self.weight * (x.flatten(1) @ term)


class Detach(nn.Module):
    """The identity, off the graph: what a forgotten `.detach()` does."""

    def forward(self, h: Tensor) -> Tensor:
        """Same values as `h`."""
        return h.detach()

    def unmasked(self) -> nn.Module:
        """The identity, which lets the gradient pass."""
        return nn.Identity()


class Grafted(nn.Module):
    """The values of one layer with the gradient of another function of the same input."""

    def __init__(self, layer: nn.Module, slope: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.slope = layer, slope

    def forward(self, h: Tensor) -> Tensor:
        """Same shape as `h`."""
        stand_in = self.slope(h)
        with torch.no_grad():
            value = self.layer(h)
        return graft(value, stand_in) if stand_in.requires_grad else value


def saturate(network: nn.Module, gain: float) -> nn.Module:
    """A copy of a tanh network with every tanh made `gain` times steeper."""
    return replaced(network, nn.Tanh, lambda: SteepTanh(gain))


def replaced(network: nn.Module, kind: type[nn.Module], make: Callable[[], nn.Module]) -> nn.Module:
    """A copy of a network with every layer of a kind replaced by a new one."""
    twin = copy.deepcopy(network)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, make())
    return twin


def inserted(network: nn.Module, position: int, layer: nn.Module) -> nn.Sequential:
    """A copy of a sequential network with a layer put in before the one at `position`."""
    layers = list(copy.deepcopy(network).children())
    return nn.Sequential(*layers[:position], layer, *layers[position:])


def k_winners(network: nn.Module, data: str, share: float = 0.2) -> nn.Module:
    """Every ReLU replaced by k-winners-take-all, the readout fitted again."""
    return with_new_readout(replaced(network, nn.ReLU, lambda: KWinners(share)), data)


def binary_features(network: nn.Module, data: str) -> nn.Module:
    """Penultimate features turned into signs about their training mean, the readout fitted again."""
    features, _ = _training_features(network, data)
    body = list(copy.deepcopy(network).children())
    return with_new_readout(nn.Sequential(*body[:-1], SignActivation(features.mean(dim=0)), body[-1]), data)


def nearest_neighbours(network: nn.Module, data: str, k: int = 5) -> nn.Module:
    """The readout replaced by the votes of the nearest training points in feature space."""
    known, labels = _training_features(network, data)
    return NearestNeighbours(nn.Sequential(*list(copy.deepcopy(network).children())[:-1]), known, labels, k)


def with_new_readout(network: nn.Module, data: str) -> nn.Sequential:
    """The network with its last layer replaced by a ridge regression on one-hot targets, in closed form."""
    features, labels = _training_features(network, data)
    design = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    targets = nn.functional.one_hot(labels).double()
    gram = design.T @ design
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weights = torch.linalg.solve(gram, design.T @ targets).T.float()
    readout = nn.Linear(features.shape[1], targets.shape[1])
    with torch.no_grad():
        readout.weight.copy_(weights[:, :-1])
        readout.bias.copy_(weights[:, -1])
    return nn.Sequential(*list(network.children())[:-1], readout).eval()


def _training_features(network: nn.Module, data: str) -> tuple[Tensor, Tensor]:
    """Penultimate features (M, D) of training points and their labels (M,)."""
    points = load_data(data, split="train")
    body = nn.Sequential(*list(network.children())[:-1]).eval()
    with torch.no_grad():
        parts = [body(batch) for batch in points.x[:READOUT_POINTS].split(500)]
    return torch.cat(parts), points.y[:READOUT_POINTS]
