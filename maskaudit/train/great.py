"""Gradient adversarial training: GREAT, GREACE and GRE(AT+CE).

Sinha, Chen, Badrinarayanan, Rabinovich 2018, "Gradient Adversarial Training of Neural
Networks" (arXiv 1806.08028), section 3.1. An auxiliary network h learns to tell the class
of a point from its masked input gradient g (`masked_gradient`); the main network learns,
beside its task, to make that impossible:

    GREAT       CE(a, y) − α · CE(h(g), y)              by gradient reversal through g
    GREACE      CE(a, y) + β · mean Σ_{j≠y} S_j a_j     with S = softmax(h(g)) held constant
    GRE(AT+CE)  both

and h always minimises CE(h(g), y). One backward pass updates both networks. α and β are
zero in the first epoch, so that h sees gradients of a network that has learned something,
and then rise linearly to the configured values (the ramp is a choice made here).

Built here as a subject of audits, not as a defence: without batch normalisation GREACE and
GRE(AT+CE) look robust to cross-entropy attacks and are not. With the defaults of
`TrainConfig` and `METHODS` on the embedded digits (Linf, ε = 0.2, 597 test points, seeds
0, 1, 2) GRE(AT+CE) has clean accuracy .956, .945, .951; accuracy under iFGSM-10 .933, .905,
.905; under PGD-40 on the cross-entropy .893, .856, .873; under PGD-40 on the logit margin
.007, .013, .005; the cross-entropy gradient is exactly zero on .891, .804, .869 of the points,
because the logits have drifted to means of −4,000 … −9,000. A much larger β costs clean
accuracy (.89 at 0.1), a much larger α makes training collapse on some seeds (.51 at 0.3),
and fewer epochs or a smaller β leave less to be seen.

The method is the subject of the patent applications US20210192357A1 and US20240330691;
check before you use it for more than the study of gradient masking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.train.interface import Batch, Plan
from maskaudit.train.masked_gradient import greace_term, masked_gradient, reverse_gradient

#: Channels of the auxiliary network's first convolution, and half the width of its hidden layers.
AUXILIARY_WIDTH = 32


class GradientClassifier(nn.Module):
    """The auxiliary network h: input gradients (N, …) → class logits (N, num_classes), leaky ReLU throughout."""

    def __init__(self, shape: Sequence[int], num_classes: int, width: int = AUXILIARY_WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        features = math.prod(shape)
        if len(shape) == 3:
            channels, height, breadth = shape
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.LeakyReLU()]
            features = width * math.ceil(height / 2) * math.ceil(breadth / 2)
        layers += [nn.Flatten(), nn.Linear(features, 2 * width), nn.LeakyReLU(), nn.Linear(2 * width, num_classes)]
        self.layers = nn.Sequential(*layers)

    def forward(self, gradient: Tensor) -> Tensor:
        """Class logits (N, num_classes) of the gradients (N, …)."""
        logits: Tensor = self.layers(gradient)
        return logits


class GradientAdversarialTraining:
    """GREAT (α > 0), GREACE (β > 0) or GRE(AT+CE) (both)."""

    phases = 1

    def __init__(self, plan: Plan, model: nn.Module, *, alpha: float, beta: float) -> None:
        self.auxiliary = nn.ModuleDict({"h": GradientClassifier(plan.shape, plan.num_classes)})
        self.alpha = alpha
        self.beta = beta

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The main network's loss plus CE(h(g), y), the latter reversed on its way into the main network."""
        ramp = schedule(batch.epoch, batch.epochs)
        logits, g = masked_gradient(model, batch.x, batch.y)
        signal = reverse_gradient(g, ramp * self.alpha) if self.alpha > 0 else g.detach()
        auxiliary_logits = self.auxiliary["h"](signal)
        loss = F.cross_entropy(logits, batch.y) + F.cross_entropy(auxiliary_logits, batch.y)
        if self.beta > 0:
            loss = loss + ramp * self.beta * greace_term(logits, auxiliary_logits, batch.y)
        return loss


def schedule(epoch: int, epochs: int) -> float:
    """Share of α and β that applies in an epoch (from 0): 0 in the first, 1 in the last, linear between."""
    return epoch / (epochs - 1) if epochs > 1 else 0.0


def great(plan: Plan, model: nn.Module) -> GradientAdversarialTraining:
    """GREAT: reversal only."""
    return GradientAdversarialTraining(plan, model, alpha=plan.config.alpha, beta=0.0)


def greace(plan: Plan, model: nn.Module) -> GradientAdversarialTraining:
    """GREACE: the cross-entropy of equation 6 only."""
    return GradientAdversarialTraining(plan, model, alpha=0.0, beta=plan.config.beta)


def great_and_greace(plan: Plan, model: nn.Module) -> GradientAdversarialTraining:
    """GRE(AT+CE): both."""
    return GradientAdversarialTraining(plan, model, alpha=plan.config.alpha, beta=plan.config.beta)
