"""Training methods whose gradients stay usable: healthy networks, and robust ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.train import Batch, TrainPlan
from maskaudit.train.adversarial import PGDTraining
from maskaudit.train.adversaries import evaluating, input_gradient, pgd, random_start
from maskaudit.train.interface import OnePhase
from maskaudit.zoo.certificates import worst_logits

#: Share of the epochs of interval training after which ε and κ have reached their final values.
IBP_RAMP = 0.6
#: Final weight κ of the clean loss in interval training (Gowal et al. 2018, section 3).
IBP_KAPPA = 0.5
#: Step of fast adversarial training in units of ε (Wong et al. 2020, section 5).
FAST_STEP = 1.25
#: Bias of a unit that never fires: inputs lie in [0, 1] and initial weights are below 1.
DEAD_BIAS = -100.0


class LabelSmoothing(OnePhase):
    """Cross-entropy with the share `smoothing` of the label spread over all classes."""

    def __init__(self, plan: TrainPlan, model: nn.Module, *, smoothing: float = 0.1) -> None:
        super().__init__(plan, model)
        self.smoothing = smoothing

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Smoothed CE(f(x), y), a scalar."""
        return F.cross_entropy(model(batch.x), batch.y, label_smoothing=self.smoothing)


class Noisy(OnePhase):
    """Cross-entropy under Gaussian noise of standard deviation `sigma`: the base of randomised smoothing."""

    def __init__(self, plan: TrainPlan, model: nn.Module, *, sigma: float = 0.25) -> None:
        super().__init__(plan, model)
        self.sigma = sigma

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE(f(x + σn), y), a scalar; the noise leaves the bounds, as in the original."""
        noise = batch.rng.normal(batch.x.shape[1:], step=batch.epoch).to(batch.x)
        return F.cross_entropy(model(batch.x + self.sigma * noise), batch.y)


class FastTraining(OnePhase):
    """Cross-entropy on one-step examples from a random start (Wong et al. 2020, algorithm 3)."""

    def __init__(self, plan: TrainPlan, model: nn.Module, *, step: float = FAST_STEP) -> None:
        super().__init__(plan, model)
        self.step = step

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE(f(x_adv), y), a scalar."""
        start = random_start(batch.x, self.threat, batch.rng, step=batch.epoch)
        with evaluating(model):
            gradient = input_gradient(lambda z: F.cross_entropy(model(z), batch.y, reduction="sum"), start)
        moved = start + self.step * self.threat.eps * self.threat.step_direction(gradient)
        return F.cross_entropy(model(self.threat.project(moved, batch.x)), batch.y)


class IntervalTraining(OnePhase):
    """κ · CE(f(x), y) + (1 − κ) · CE(worst logits over the ball, y), ε and κ ramped (Gowal et al. 2018, eq. 12)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """A mixture of cross-entropy on clean and on worst-case logits, a scalar."""
        ramp = min(1.0, batch.epoch / (IBP_RAMP * batch.epochs))
        kappa = 1.0 - ramp * (1.0 - IBP_KAPPA)
        worst = worst_logits(model, batch.x, batch.y, ramp * self.threat.eps, self.threat.bounds)
        return kappa * F.cross_entropy(model(batch.x), batch.y) + (1 - kappa) * F.cross_entropy(worst, batch.y)


class LogitPairing(OnePhase):
    """Cross-entropy on clean and PGD points, and λ · mean ‖f(x) − f(x′)‖² between them (Kannan et al. 2018, eq. 3)."""

    def __init__(self, plan: TrainPlan, model: nn.Module, *, weight: float = 0.5) -> None:
        super().__init__(plan, model)
        self.steps, self.weight = plan.config.attack_steps, weight

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mixed loss, a scalar."""
        start = random_start(batch.x, self.threat, batch.rng, step=batch.epoch)
        attacked = model(pgd(model, batch.x, batch.y, self.threat, steps=self.steps, start=start))
        clean = model(batch.x)
        task = 0.5 * (F.cross_entropy(clean, batch.y) + F.cross_entropy(attacked, batch.y))
        return task + self.weight * F.mse_loss(clean, attacked)


class DeadUnits(PGDTraining):
    """PGD training of a network whose first `share` of every hidden layer's units never fires, from the first step."""

    def __init__(self, plan: TrainPlan, model: nn.Module, *, share: float = 0.75) -> None:
        super().__init__(plan, model)
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        with torch.no_grad():
            for layer in layers[:-1]:
                assert layer.bias is not None
                layer.bias[: int(share * len(layer.bias))] = DEAD_BIAS
