"""Empirical risk minimisation: the baseline without any defence."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.train.interface import Batch, OnePhase


class Standard(OnePhase):
    """Mean cross-entropy on clean inputs."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """CE(f(x), y), a scalar."""
        return F.cross_entropy(model(batch.x), batch.y)
