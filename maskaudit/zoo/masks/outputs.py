"""Masks behind the network: its scores are scaled, rounded, bent or voted away."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.zoo.masks.base import Described, Mask, unmask


class ScaledLogits(Mask):
    """Logits times a constant: same decisions, cross-entropy flat in float32 (Carlini & Wagner 2016, distillation)."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__(network)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Scaled logits (N, K)."""
        return self.network(x) * self.scale


class SharpSoftmax(Mask):
    """softmax(scale · z) as output: saturated probabilities, nothing left for score-based attacks either."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__(network)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (N, K)."""
        return torch.softmax(self.network(x) * self.scale, dim=1)


class HardLabels(Mask):
    """One-hot answers: no scores, no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """One-hot (N, K)."""
        scores = self.network(x)
        return torch.nn.functional.one_hot(scores.argmax(dim=1), scores.shape[1]).to(x.dtype)


class SoftmaxOutput(Mask):
    """Probabilities instead of logits: an ordinary softmax, which masks nothing by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (N, K)."""
        return torch.softmax(self.network(x), dim=1)


class RoundedOutput(Mask):
    """Logits or probabilities rounded to `decimals`, as an API that reports few digits does (Tramèr et al. 2016)."""

    def __init__(self, network: nn.Module, kind: Literal["logits", "probabilities"], decimals: int = 1) -> None:
        super().__init__(network)
        self.kind, self.decimals = kind, decimals

    def forward(self, x: Tensor) -> Tensor:
        """Rounded scores (N, K)."""
        scores = self.network(x)
        if self.kind == "probabilities":
            scores = torch.softmax(scores, dim=1)
        return torch.round(scores, decimals=self.decimals)


class ReverseSigmoid(Mask):
    """Probabilities p − β(σ(γ σ⁻¹(p)) − ½), normalised: the decision stays, the slope of the scores is reversed.

    T. Lee, B. Edwards, I. Molloy, D. Su, "Defending against neural network model stealing attacks using deceptive
    perturbations", 2018, section IV.
    """

    def __init__(self, network: nn.Module, beta: float = 0.7, gamma: float = 0.2) -> None:
        super().__init__(network)
        self.beta, self.gamma = beta, gamma

    def forward(self, x: Tensor) -> Tensor:
        """Perturbed probabilities (N, K)."""
        p = torch.softmax(self.network(x), dim=1)
        bent = p - self.beta * (torch.sigmoid(self.gamma * torch.logit(p, eps=1e-7)) - 0.5)
        return bent / bent.sum(dim=1, keepdim=True)


class SineLogits(Mask):
    """z + amplitude · sin(frequency · z): a ripple on the scores whose slope drowns that of the network."""

    def __init__(self, network: nn.Module, amplitude: float = 0.3, frequency: float = 2000.0) -> None:
        super().__init__(network)
        self.amplitude, self.frequency = amplitude, frequency

    def forward(self, x: Tensor) -> Tensor:
        """Rippled logits (N, K)."""
        scores: Tensor = self.network(x)
        return scores + self.amplitude * torch.sin(self.frequency * scores)


class ShiftedVote(Mask):
    """Majority of hard votes over the image and four copies shifted by half a pixel: counts have no gradient.

    Voting over transformed copies is Raff et al. 2019, "Barrage of random transforms", without the randomness.
    """

    def __init__(self, network: nn.Module, shift: float = 0.5, *, hard: bool = True) -> None:
        super().__init__(network)
        self.shift, self.hard = shift, hard

    def forward(self, x: Tensor) -> Tensor:
        """Share of the votes (N, K), or the mean probabilities where votes are soft."""
        votes = torch.zeros(())
        copies = ((0.0, 0.0), (self.shift, 0.0), (-self.shift, 0.0), (0.0, self.shift), (0.0, -self.shift))
        for right, down in copies:
            scores = self.network(shifted(x, right, down))
            if self.hard:
                votes = votes + F.one_hot(scores.argmax(dim=1), scores.shape[1]).to(x.dtype)
            else:
                votes = votes + torch.softmax(scores, dim=1)
        return votes / len(copies)

    def unmasked(self) -> nn.Module:
        """The same copies with soft votes."""
        return ShiftedVote(unmask(self.network), self.shift, hard=False)


def shifted(images: Tensor, right: float, down: float) -> Tensor:
    """Images (N, C, H, W) moved by a part of a pixel, bilinear, black at the border."""
    height, width = images.shape[2:]
    identity = torch.tensor([[1.0, 0.0, -2.0 * right / width], [0.0, 1.0, -2.0 * down / height]])
    grid = F.affine_grid(identity.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class NearestNeighbours(Described):
    """Votes of the `k` nearest training points in feature space (Papernot & McDaniel 2018, Deep k-nearest neighbours).

    Args:
        features: inputs (N, …) → features (N, D).
        known, labels: features (M, D) and classes (M,) of the training points.
        temperature: of the soft votes exp(−distance² / temperature), which replace the hard ones if given
            (Sitawarin & Wagner 2019, "On the robustness of deep k-nearest neighbors", section III).
    """

    known: Tensor
    labels: Tensor

    def __init__(
        self, features: nn.Module, known: Tensor, labels: Tensor, k: int = 5, temperature: float | None = None
    ) -> None:
        super().__init__()
        self.features, self.k, self.temperature = features, k, temperature
        self.classes = int(labels.max()) + 1
        self.register_buffer("known", known)
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor) -> Tensor:
        """Share of the votes (N, K), or log soft votes."""
        distance = torch.cdist(self.features(x), self.known)
        if self.temperature is not None:
            weight = -distance.square() / self.temperature
            per_class = [weight[:, self.labels == c].logsumexp(dim=1) for c in range(self.classes)]
            return torch.stack(per_class, dim=1)
        nearest = distance.topk(self.k, dim=1, largest=False).indices
        return F.one_hot(self.labels[nearest], self.classes).to(x.dtype).mean(dim=1)

    def unmasked(self) -> nn.Module:
        """Soft votes, at the scale of the training points' own distances to their neighbours."""
        spread = torch.cdist(self.known, self.known).topk(self.k + 1, dim=1, largest=False).values[:, 1:]
        temperature = float(spread.square().mean())
        return NearestNeighbours(unmask(self.features), self.known, self.labels, self.k, temperature)
