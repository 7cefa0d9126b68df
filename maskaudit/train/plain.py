"""Empirical risk minimisation: the baseline without any defence."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.train.interface import Batch, TrainPlan


class Standard:
    """Mean cross-entropy on clean inputs."""

    phases = 1

    def __init__(self, plan: TrainPlan, model: nn.Module) -> None:
        self.auxiliary = nn.ModuleDict()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE(f(x), y), a scalar."""
        return F.cross_entropy(model(batch.x), batch.y)
