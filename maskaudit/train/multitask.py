"""Multi-task training whose gradients are made indistinguishable: GREAT with gradient-alignment layers.

Sinha et al. 2018, "Gradient Adversarial Training of Neural Networks" (arXiv 1806.08028), section 2.3, algorithm 3,
equation 9 and supplement; also GradNorm (Chen et al. 2018, arXiv 1711.02257, algorithm 1) and the weighting by
uncertainty (Kendall, Gal, Cipolla 2018, arXiv 1705.07115, section 3.2). One network up to its last shared features,
one decoder per task; the classifier with its own decoder is what is kept as the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.errors import UsageError
from maskaudit.networks.layers import BasicBlock
from maskaudit.settings import Weighting
from maskaudit.train.adversaries import evaluating
from maskaudit.train.auxiliary import leaky
from maskaudit.train.interface import Batch, TrainPlan
from maskaudit.train.masked_gradient import reverse_gradient
from maskaudit.train.tasks import ImageDecoder, noisy_grey, targets

#: Smallest entry of a gradient-alignment layer: they are kept positive.
LEAST_SCALE = 1e-3
#: GradNorm's restoring force on CIFAR-10 (Sinha et al. 2018, section 3.3).
GRADNORM_ALPHA = 0.6
#: Residual stages of the task classifier, each with half the channels of the one before (supplement).
CLASSIFIER_STAGES = 4


class GradientScale(torch.autograd.Function):
    """A gradient-alignment layer: nothing forwards, the gradient times γ backwards."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, gamma: Tensor) -> Tensor:
        """Features (N, F, h, w) as they are."""
        ctx.save_for_backward(gamma)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient times γ (F, h, w); γ itself learns from the task classifier only."""
        (gamma,) = ctx.saved_tensors
        return gradients[0] * gamma, None


class Balance(nn.Module):
    """How the losses of K tasks come together; learns what it needs.

    Attributes:
        first: the tasks' losses in the first step (K,), by which they are divided; zero before it.
    """

    first: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(tasks))

    def normalised(self, losses: Sequence[Tensor]) -> Tensor:
        """Losses over their first values (K,)."""
        stacked = torch.stack(list(losses))
        if not bool(self.first.any()):
            self.first.copy_(stacked.detach().clamp_min(1e-12))
        return stacked / self.first

    def shared(self, features: Tensor) -> list[Tensor]:
        """The features (N, F, h, w) as each task's decoder gets them."""
        return [features.clone() for _ in self.first]

    def loss(self, losses: Tensor, received: Sequence[Tensor], batch: Batch) -> Tensor:
        """The scalar to minimise, from losses (K,) and the features that the decoders got: equal weights."""
        return losses.sum()


class AlignmentLayers(Balance):
    """GREAT: layers γ_i > 0 scale each task's gradient so that a classifier cannot tell the tasks apart.

    One backward pass does what lines 6 to 11 of algorithm 3 say: decoders follow ∇C_i, the encoder Σ γ_i g_i, the
    classifier its own loss on γ_i g_i, and each γ_i the reversed gradient of that loss; g_i is a constant there.
    """

    def __init__(self, tasks: int, shape: tuple[int, ...]) -> None:
        super().__init__(tasks)
        self.gammas = nn.Parameter(torch.ones(tasks, *shape))
        self.classifier = task_classifier(shape[0], tasks)

    def shared(self, features: Tensor) -> list[Tensor]:
        with torch.no_grad():
            self.gammas.clamp_(min=LEAST_SCALE)
        return [GradientScale.apply(features, gamma.detach()) for gamma in self.gammas]  # type: ignore[no-untyped-call]

    def loss(self, losses: Tensor, received: Sequence[Tensor], batch: Batch) -> Tensor:
        gradients = task_gradients(losses, received)
        scaled = torch.cat([g * gamma for g, gamma in zip(gradients, reverse_gradient(self.gammas, 1.0), strict=True)])
        origin = torch.arange(len(gradients), device=scaled.device).repeat_interleave(len(batch.x))
        logits = self.classifier(scaled * len(batch.x))  # of single points: the losses are means
        batch.meter.count(logits, origin)
        return losses.sum() + F.cross_entropy(logits, origin)


class GradNorm(Balance):
    """Weights w_i, summing to K, that pull the norms of w_i ∇C_i towards a common one (Chen et al. 2018, eq. 2)."""

    def __init__(self, tasks: int) -> None:
        super().__init__(tasks)
        self.weights = nn.Parameter(torch.ones(tasks))

    def loss(self, losses: Tensor, received: Sequence[Tensor], batch: Batch) -> Tensor:
        with torch.no_grad():
            self.weights.clamp_(min=LEAST_SCALE)
            self.weights.mul_(len(losses) / self.weights.sum())
        norms = torch.stack([gradient.flatten().norm() for gradient in task_gradients(losses, received)])
        pace = losses.detach() / losses.detach().mean()
        weighted = self.weights * norms
        aim = (weighted.mean() * pace**GRADNORM_ALPHA).detach()
        return (self.weights.detach() * losses).sum() + (weighted - aim).abs().sum()


class Uncertainty(Balance):
    """Weights exp(−s_i) with the penalty s_i (Kendall et al. 2018, eq. 7), normalised to sum to K as GradNorm's do.

    Sinha et al. normalise them to 1, which is the same up to a factor that Adam's step does not see.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__(tasks)
        self.log_variances = nn.Parameter(torch.zeros(tasks))

    def loss(self, losses: Tensor, received: Sequence[Tensor], batch: Batch) -> Tensor:
        precisions = torch.exp(-self.log_variances)
        learnt = (precisions * losses.detach() + self.log_variances).sum()
        weights = precisions.detach() * len(losses) / precisions.detach().sum()
        return (weights * losses).sum() + learnt


class MultiTask:
    """Classification, colours (where there are some), edges and the clean image, from noisy grey input."""

    phases = 1

    def __init__(self, plan: TrainPlan, model: nn.Module) -> None:
        self.at = shared_layers(model, plan.shape)
        with torch.no_grad(), evaluating(model):
            shape = tuple(_through(model, 0, self.at, torch.zeros(2, *plan.shape)).shape[1:])
        size = (plan.shape[1], plan.shape[2])
        channels = {name: image.shape[1] for name, image in targets(torch.zeros(1, *plan.shape)).items()}
        decoders = {name: ImageDecoder(shape[0], count, size) for name, count in channels.items()}
        self.auxiliary = nn.ModuleDict(
            {**decoders, "balance": balance(plan.config.weighting, 1 + len(decoders), shape)}
        )
        self.low, self.high = plan.threat.bounds

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """All task losses, balanced, with what the balance itself learns from; a scalar."""
        losses, received = self.task_losses(model, batch)
        weigher: Balance = self.auxiliary["balance"]  # type: ignore[assignment]
        return weigher.loss(weigher.normalised(losses), received, batch)

    def task_losses(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Cross-entropy, then the mean squared error of each image; and the features each decoder got."""
        weigher: Balance = self.auxiliary["balance"]  # type: ignore[assignment]
        first, *others = weigher.shared(_through(model, 0, self.at, self.seen(batch)))
        losses = [F.cross_entropy(_through(model, self.at, None, first), batch.y)]
        for features, (name, wanted) in zip(others, targets(self._unit(batch.x)).items(), strict=True):
            losses.append(F.mse_loss(self.auxiliary[name](features), wanted))
        return losses, [first, *others]

    def seen(self, batch: Batch) -> Tensor:
        """The noisy grey input of the network, inside the bounds."""
        return noisy_grey(self._unit(batch.x), batch.rng, step=batch.epoch) * (self.high - self.low) + self.low

    def _unit(self, x: Tensor) -> Tensor:
        return (x - self.low) / (self.high - self.low)


def balance(weighting: Weighting, tasks: int, shape: tuple[int, ...]) -> Balance:
    """The balance of that name for features of `shape` (F, h, w)."""
    if weighting == "great":
        return AlignmentLayers(tasks, shape)
    return {"equal": Balance, "gradnorm": GradNorm, "uncertainty": Uncertainty}[weighting](tasks)


def task_gradients(losses: Tensor, received: Sequence[Tensor]) -> list[Tensor]:
    """∇C_i with respect to the features (N, F, h, w) that decoder i got; constants."""
    return [
        torch.autograd.grad(loss, features, retain_graph=True)[0].detach()
        for loss, features in zip(losses, received, strict=True)
    ]


def task_classifier(channels: int, tasks: int) -> nn.Sequential:
    """Gradients (N, F, h, w) → task logits (N, tasks): residual stages that halve the channels, leaky ReLU."""
    widths = [channels, *(max(channels // 2**stage, 4) for stage in range(1, CLASSIFIER_STAGES + 1))]
    layers: list[nn.Module] = [BasicBlock(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*(leaky(layer) for layer in layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(widths[-1], tasks))  # fmt: skip


def shared_layers(model: nn.Module, shape: tuple[int, ...]) -> int:
    """How many of the model's layers make the shared features: those up to the last before pooling or flattening.

    Raises:
        UsageError: for a model that is no sequence of layers, or data that are no images.
    """
    if not isinstance(model, nn.Sequential) or len(shape) != 3:
        raise UsageError("great-mtl needs images and a model that is a sequence of layers, such as resnet.")
    ends = (nn.Flatten, nn.AdaptiveAvgPool2d)
    at = next((number for number, layer in enumerate(model) if isinstance(layer, ends)), 0)
    if at == 0:
        raise UsageError("great-mtl needs a convolutional model with features to share, such as resnet.")
    return at


def _through(model: nn.Module, start: int, end: int | None, x: Tensor) -> Tensor:
    assert isinstance(model, nn.Sequential)
    for layer in list(model)[start:end]:
        x = layer(x)
    return x
