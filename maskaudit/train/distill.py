"""Defensive distillation: a defence known to mask gradients at the level of the loss.

Papernot, McDaniel, Wu, Jha, Swami 2016, "Distillation as a Defense to Adversarial
Perturbations against Deep Neural Networks" (arXiv 1511.04508), section IV. Trained at
temperature T and used at 1, the student's logits are about T times too large for
float32 cross-entropy gradients (Carlini and Wagner 2017, arXiv 1608.04644, section X).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.train.interface import Batch, TrainPlan


class DefensiveDistillation:
    """A teacher is trained at temperature T in the first phase, the model on its soft labels in the second."""

    phases = 2

    def __init__(self, plan: TrainPlan, model: nn.Module) -> None:
        self.auxiliary = nn.ModuleDict({"teacher": copy.deepcopy(model)})
        self.temperature = plan.temperature

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE(teacher(x) / T, y), then CE(f(x) / T, softmax(teacher(x) / T)), a scalar."""
        teacher = self.auxiliary["teacher"]
        if batch.epoch < batch.epochs:
            batch.meter.learner = teacher
            return F.cross_entropy(teacher(batch.x) / self.temperature, batch.y)
        teacher.eval()
        with torch.no_grad():
            soft_labels = (teacher(batch.x) / self.temperature).softmax(1)
        return F.cross_entropy(model(batch.x) / self.temperature, soft_labels)
