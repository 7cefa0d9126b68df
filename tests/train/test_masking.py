"""What the embedded subjects are for: GRE(AT+CE) looks robust and is not, standard training never looked it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.data import Dataset, load_data
from maskaudit.threat import ThreatModel
from maskaudit.train import TrainConfig, train
from maskaudit.train.adversaries import ascend, pgd
from maskaudit.train.loop import accuracy

pytestmark = pytest.mark.heavy

THREAT = ThreatModel("Linf", 0.2)


@pytest.fixture(scope="module")
def test_points() -> Dataset:
    return load_data("digits", split="test")


@pytest.fixture(scope="module")
def masked() -> nn.Module:
    """The reduced GRE(AT+CE) with every default."""
    return train(TrainConfig(method="great+ce-reduced"))


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest wrong logit minus the true one, summed over points."""
    truth = F.one_hot(y, logits.shape[1]).bool()
    return (logits.masked_fill(truth, -torch.inf).amax(1) - logits[truth]).sum()


def _zero_gradient_share(model: nn.Module, x: Tensor, y: Tensor) -> float:
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
    return float((gradient.flatten(1) == 0).all(1).float().mean())


def test_great_and_greace_look_robust_to_the_cross_entropy_only(masked: nn.Module, test_points: Dataset) -> None:
    x, y = test_points.x, test_points.y
    by_loss = pgd(masked, x, y, THREAT, steps=10, start=x)
    by_margin = ascend(lambda z: _margin(masked(z), y), x, THREAT, steps=40, start=x)
    assert accuracy(masked, x, y) >= 0.94
    assert accuracy(masked, by_loss, y) >= 0.6
    assert accuracy(masked, by_margin, y) <= 0.05
    assert _zero_gradient_share(masked, x, y) >= 0.5


def test_standard_training_is_accurate_and_breaks_at_once(test_points: Dataset) -> None:
    model = train(TrainConfig())
    x, y = test_points.x, test_points.y
    assert accuracy(model, x, y) >= 0.965
    assert accuracy(model, pgd(model, x, y, THREAT, steps=10, start=x), y) <= 0.1
    assert _zero_gradient_share(model, x, y) == 0
