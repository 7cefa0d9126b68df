"""Training without a defence, and adversarial training: cross-entropy on the examples of an attack, and TRADES.

Goodfellow, Shlens, Szegedy 2015, "Explaining and Harnessing Adversarial Examples"
(arXiv 1412.6572); Madry et al. 2018, "Towards Deep Learning Models Resistant to
Adversarial Attacks" (arXiv 1706.06083); Zhang et al. 2019, "Theoretically Principled
Trade-off between Robustness and Accuracy" (arXiv 1901.08573).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.train.adversaries import ascend, evaluating, fgsm, pgd, random_start
from maskaudit.train.interface import Batch, OnePhase

#: Standard deviation of TRADES' start noise in units of the bounds' width: the KL
#: divergence has zero gradient at the clean point itself (Zhang et al. 2019, algorithm 1).
TRADES_START = 0.001


class Standard(OnePhase):
    """Mean cross-entropy on clean inputs: empirical risk minimisation, the baseline without any defence."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE(f(x), y), a scalar."""
        return F.cross_entropy(model(batch.x), batch.y)


class FGSMTraining(OnePhase):
    """Cross-entropy on one-step examples from the clean point, no random start (Goodfellow et al. 2015).

    Without the clean half of the original's mixture unless `clean_weight` asks for it (0.5 there, and in Sinha et al.
    2018). Known to end in catastrophic overfitting (Wong et al. 2020, arXiv 2001.03994): robust to its own one step
    only.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE(f(x + ε · step direction), y), a scalar."""
        attacked = fgsm(model, batch.x, batch.y, self.threat)
        return with_clean(model, batch, F.cross_entropy(model(attacked), batch.y), self.config.clean_weight)


class PGDTraining(OnePhase):
    """Cross-entropy on PGD examples with a random start (Madry et al. 2018, section 2.1)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE(f(x_pgd), y), a scalar."""
        start = random_start(batch.x, self.threat, batch.rng, step=batch.epoch)
        attacked = pgd(model, batch.x, batch.y, self.threat, steps=self.config.attack_steps, start=start)
        return with_clean(model, batch, F.cross_entropy(model(attacked), batch.y), self.config.clean_weight)


def with_clean(model: nn.Module, batch: Batch, attacked_loss: Tensor, weight: float) -> Tensor:
    """(1 − weight) · loss on attacked points + weight · cross-entropy on the clean ones."""
    if weight == 0:
        return attacked_loss
    return (1 - weight) * attacked_loss + weight * F.cross_entropy(model(batch.x), batch.y)


class Trades(OnePhase):
    """CE(f(x), y) + β · KL(f(x) ‖ f(x′)) with x′ maximising the divergence (Zhang et al. 2019, eq. 5)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Natural cross-entropy plus the weighted divergence at the attacked point, a scalar."""
        x_adv = self._attack(model, batch)
        logits = model(batch.x)
        divergence = F.kl_div(
            F.log_softmax(model(x_adv), 1), F.log_softmax(logits, 1), reduction="batchmean", log_target=True
        )
        return F.cross_entropy(logits, batch.y) + self.config.trades_beta * divergence

    def _attack(self, model: nn.Module, batch: Batch) -> Tensor:
        low, high = self.threat.bounds
        noise = batch.rng.normal(batch.x.shape[1:], step=batch.epoch).to(batch.x)
        start = self.threat.project(batch.x + TRADES_START * (high - low) * noise, batch.x)
        with evaluating(model):
            with torch.no_grad():
                clean = F.log_softmax(model(batch.x), 1)
            return ascend(
                lambda z: F.kl_div(F.log_softmax(model(z), 1), clean, reduction="sum", log_target=True),
                batch.x,
                self.threat,
                steps=self.config.attack_steps,
                start=start,
            )
