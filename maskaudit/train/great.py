"""Gradient adversarial training: GREAT, GREACE and GRE(AT+CE), as published.

Sinha, Chen, Badrinarayanan, Rabinovich 2018, "Gradient Adversarial Training of Neural
Networks" (arXiv 1806.08028), section 2.1, algorithm 1 and supplement. An auxiliary network
h learns to tell the class of a point from its masked input gradient g (`masked_gradient`);
the main network learns, in addition to its task, to make that impossible:

    GREAT       CE(a, y) − α · CE(h(g), y)              by gradient reversal through g
    GREACE      CE(a, y) + β · mean Σ_{j≠y} S_j a_j     with S = softmax(h(g)) held constant
    GRE(AT+CE)  both

and h always minimises CE(h(g), y). h is a network of the main network's own architecture
with leaky ReLU (slope 0.2). In epoch e of e_max, counted from 0, Adam's step size is
lr · m with m = (1 − e/e_max)^0.9, and α = α_max (1 − m), β = β_max (1 − m): both are zero in
the first epoch. One backward pass serves both networks, as a reversal layer does it; so h is
one step older than in line 7 of algorithm 1, which evaluates it after its own update.

What to know before reading a result:

- **GREACE is unbounded below.** Equation 6 is linear in the logits, so the loss can always be
  lowered by pushing wrong logits further down; without normalisation layers they drift to
  −10⁴ … −10⁶. There p_y is 1 in float32, the cross-entropy's gradient is exactly zero, and every
  attack on the cross-entropy makes no progress while the margin still breaks the point. `--greace
  bounded` (−β Σ S_j log(1 − p_j)) has no such direction; `--greace zero-sum` keeps the logits'
  sum but not their spread.
- **The second derivative of ReLU is zero**, so the reversed signal reaches the weights only
  through the product of slopes and through p_y; biases get it through p_y alone.
- **Batch normalisation under double backward**: in training mode the gradient of a point also
  flows through the batch's mean and variance. What h sees is therefore not quite the gradient
  that an attacker of the finished model (evaluation mode) computes.
- **Stopped coefficients**: S is a constant of equation 6. Were it differentiated, the term
  would train g as well and equation 6 would no longer be the gradient at the logits.

The method is the subject of the patent applications US20210192357A1 and US20240330691;
check before you use it for more than the study of gradient masking.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.train.auxiliary import leaky_copy
from maskaudit.train.interface import Batch, TrainPlan, rate_multiplier
from maskaudit.train.masked_gradient import GREACE_TERMS, masked_gradient, reverse_gradient

#: Share of α and β that applies in an epoch: (epoch from 0, epochs) → [0, 1].
Ramp = Callable[[int, int], float]


class GradientAdversarialTraining:
    """GREAT (α > 0), GREACE (β > 0) or GRE(AT+CE) (both)."""

    phases = 1

    def __init__(self, plan: TrainPlan, h: nn.Module, ramp: Ramp, *, great: bool, greace: bool) -> None:
        self.auxiliary = nn.ModuleDict({"h": h})
        self.alpha, self.beta = plan.alpha if great else 0.0, plan.beta if greace else 0.0
        self.ramp = ramp
        self.greace_term = GREACE_TERMS[plan.config.greace]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The main network's loss plus CE(h(g), y), the latter reversed on its way into the main network."""
        share = self.ramp(batch.epoch, batch.epochs)
        logits, g = masked_gradient(model, batch.x, batch.y)
        signal = reverse_gradient(g, share * self.alpha) if self.alpha > 0 else g.detach()
        auxiliary_logits = self.auxiliary["h"](signal)
        batch.meter.count(auxiliary_logits, batch.y)
        loss = F.cross_entropy(logits, batch.y) + F.cross_entropy(auxiliary_logits, batch.y)
        if self.beta > 0:
            loss = loss + share * self.beta * self.greace_term(logits, auxiliary_logits, batch.y)
        return loss


def schedule(epoch: int, epochs: int) -> float:
    """The paper's 1 − (1 − e/e_max)^0.9: 0 in the first epoch, nearly 1 in the last."""
    return 1 - rate_multiplier(epoch, epochs)


def published(plan: TrainPlan, model: nn.Module, *, great: bool, greace: bool) -> GradientAdversarialTraining:
    """Reversal (GREAT), the cross-entropy of equation 6 (GREACE), or both, with a copy of the network beside it."""
    return GradientAdversarialTraining(plan, leaky_copy(plan.model), schedule, great=great, greace=greace)
