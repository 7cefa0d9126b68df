"""Masks that answer at random: the gradient is that of another draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.zoo.masks.base import Described, Mask, unmask
from maskaudit.zoo.masks.layers import inserted


class InputNoise(Mask):
    """Normal noise on the input, new at every call (Liu et al. 2018, "Towards robust neural networks via random
    self-ensemble", with one draw).
    """

    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__(network)
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the noisy input."""
        return self.network(x + self.sigma * torch.randn_like(x))


class SampledSmoothing(Mask):
    """The mean probabilities of a network under normal noise, over `draws` fresh draws at every call, as logarithms.

    Randomised smoothing (Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918) with soft votes (Salman et al. 2019, arXiv
    1906.04584, section 3.1), as it is run in practice. What a certificate proves of the exact mean holds for this
    estimate only with a probability, so none is recorded.
    """

    def __init__(self, network: nn.Module, sigma: float, draws: int) -> None:
        super().__init__(network)
        self.sigma, self.draws = sigma, draws

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (N, K)."""
        return log_mean(noisy_scores(self.network, x, self.sigma * _fresh(x, self.draws)))

    def unmasked(self) -> nn.Module:
        """The mean over draws that stay the same, four times as many: expectation over transformation."""
        return _MeanOverDraws(unmask(self.network), self.sigma, 4 * self.draws)


class SampledVote(SampledSmoothing):
    """The same with hard votes, the shares of draws for each class, as in the original's prediction (their section
    3.2.1): the gradient is cut.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shares of votes (N, K)."""
        scores = noisy_scores(self.network, x, self.sigma * _fresh(x, self.draws))
        return F.one_hot(scores.argmax(dim=2), scores.shape[2]).to(x).mean(dim=0)


class _MeanOverDraws(Described):
    def __init__(self, network: nn.Module, sigma: float, draws: int) -> None:
        super().__init__()
        self.network, self.sigma, self.draws = network, sigma, draws

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.randn(self.draws, 1, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
        return log_mean(noisy_scores(self.network, x, self.sigma * kept))


def _fresh(x: Tensor, draws: int) -> Tensor:
    return torch.randn(draws, *x.shape).to(x)


def noisy_scores(network: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """Scores (draws, N, K) of inputs (N, …) plus each of the noises (draws, N or 1, …)."""
    views = x + noise
    scores: Tensor = network(views.flatten(0, 1))
    return scores.view(*views.shape[:2], -1)


def log_mean(scores: Tensor) -> Tensor:
    """Logarithm (N, K) of the mean softmax over the first axis of (draws, N, K)."""
    return scores.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(scores))


class ResizePad(Mask):
    """Images shrunk to a random size and put at a random place on a black ground (Xie et al. 2018).

    Size and place are drawn afresh for every image, and are no whole pixels: the images here are small.

    Args:
        smallest: smallest side as a share of the image's.
    """

    def __init__(self, network: nn.Module, smallest: float) -> None:
        super().__init__(network)
        self.smallest = smallest

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the images (N, C, H, W)."""
        size = self.smallest + (1 - self.smallest) * torch.rand(len(x))
        place = 2 * torch.rand(2, len(x)) - 1
        return self.network(placed(x, size, *place))

    def unmasked(self) -> nn.Module:
        """The mean over three sizes, each in the middle and at the corners: expectation over transformation."""
        return _MeanOverPlaces(unmask(self.network), self.smallest)


class _MeanOverPlaces(Described):
    def __init__(self, network: nn.Module, smallest: float) -> None:
        super().__init__()
        self.network, self.smallest = network, smallest

    def forward(self, x: Tensor) -> Tensor:
        corners = [(right, down) for right in (-1.0, 1.0) for down in (-1.0, 1.0)]
        total, one = torch.zeros(()), torch.ones(len(x))
        for size in (self.smallest, (1 + self.smallest) / 2, 1.0):
            views = [placed(x, size * one, right * one, down * one) for right, down in [(0.0, 0.0), *corners]]
            total = total + torch.stack([self.network(view) for view in views]).log_softmax(dim=2).mean(dim=0)
        return total / 3


def placed(images: Tensor, size: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Images (N, C, H, W) shrunk by the factors `size` (N,) on black ground, bilinear.

    Args:
        right, down: place (N,), −1 and 1 at the borders, 0 in the middle.
    """
    zero, room = torch.zeros(len(images)), 1 - size
    rows = [torch.stack([1 / size, zero, -right * room / size]), torch.stack([zero, 1 / size, -down * room / size])]
    maps = torch.stack(rows).permute(2, 0, 1).to(images)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class StochasticPruning(Described):
    """Activations drawn with replacement in proportion to their size, the drawn ones scaled up
    (Dhillon et al. 2018, "Stochastic activation pruning", equations 1 to 3).

    Args:
        share: draws as a share of the number of activations.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def forward(self, h: Tensor) -> Tensor:
        """Same shape as `h` (N, …), with the undrawn activations set to zero."""
        flat = h.flatten(1)
        chance = flat.detach().abs()
        chance = chance / chance.sum(dim=1, keepdim=True).clamp_min(1e-12)
        draws = max(1, int(self.share * flat.shape[1]))
        kept = 1 - (1 - chance) ** draws
        alive = torch.rand_like(kept) < kept
        return torch.where(alive, flat / kept.clamp_min(1e-12), 0.0).view(h.shape)

    def unmasked(self) -> nn.Module:
        """The identity, which is its mean."""
        return nn.Identity()


class DropoutOn(Described):
    """Dropout that is never switched off (Gal & Ghahramani 2016, one draw; or an `eval()` forgotten)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, h: Tensor) -> Tensor:
        """Same shape as `h`, a share `p` of it set to zero and the rest scaled up."""
        return F.dropout(h, self.p, training=True)

    def unmasked(self) -> nn.Module:
        """The identity, which is its mean."""
        return nn.Identity()


def before_readout(network: nn.Module, layer: nn.Module) -> nn.Sequential:
    """A copy of a sequential network with a layer put in before the last one."""
    return inserted(network, len(list(network.children())) - 1, layer)
