"""GREAT, GREACE and GRE(AT+CE) in a reduced form: subjects of the zoo, whose logits drift within seconds.

As `maskaudit.train.great`, but with an auxiliary network of three layers instead of a copy of
the main one, weights of a hundredth of the published ones and a linear ramp. With the defaults
of `METHODS` on the embedded digits (Linf, ε = 0.2, 597 test points, seeds 0, 1, 2)
GRE(AT+CE) has clean accuracy .956, .945, .951; accuracy under iFGSM-10 .933, .905, .905; under
PGD-40 on the cross-entropy .893, .856, .873; under PGD-40 on the logit margin .007, .013, .005;
the cross-entropy gradient is exactly zero on .891, .804, .869 of the points, because the logits
have drifted to means of −4,000 … −9,000. A much larger β costs clean accuracy (.89 at 0.1), a
much larger α makes training collapse on some seeds (.51 at 0.3), and fewer epochs or a smaller
β leave less to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from maskaudit.train.great import GradientAdversarialTraining
from maskaudit.train.interface import TrainPlan

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
        return self.layers(gradient)


def linear_ramp(epoch: int, epochs: int) -> float:
    """Share of α and β that applies in an epoch (from 0): 0 in the first, 1 in the last, linear between."""
    return epoch / (epochs - 1) if epochs > 1 else 0.0


def reduced(plan: TrainPlan, model: nn.Module, *, great: bool, greace: bool) -> GradientAdversarialTraining:
    """Reversal (GREAT), the cross-entropy of equation 6 (GREACE), or both, with the small network."""
    h = GradientClassifier(plan.shape, plan.num_classes)
    return GradientAdversarialTraining(plan, h, linear_ramp, great=great, greace=greace)
