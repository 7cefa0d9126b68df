"""Trained subjects, once per session."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskaudit.data import load_data
from maskaudit.loading import LoadedModel
from tests.attacks.subjects import Subjects


@pytest.fixture(scope="session")
def subjects(net: nn.Module, pgd_trained: LoadedModel) -> Subjects:
    """A standard and a PGD-trained digits network with the test points that both classify correctly."""
    assert isinstance(pgd_trained.module, nn.Module)
    robust, test = pgd_trained.module.eval(), load_data("digits", split="test")
    with torch.no_grad():
        right = (net(test.x).argmax(1) == test.y) & (robust(test.x).argmax(1) == test.y)
    return Subjects(net, robust, test.x[right], test.y[right], load_data("digits", split="train").x)
