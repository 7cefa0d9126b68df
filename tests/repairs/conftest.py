"""The hand-built models and sixteen points that the network inside them classifies correctly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskaudit.data import load_data
from maskaudit.loading import LoadedModel

sys.path.insert(0, str(Path(__file__).parents[1] / "trace"))  # lets the tests import `masked_models`


@pytest.fixture(scope="session")
def net(standard: LoadedModel) -> nn.Module:
    assert isinstance(standard.module, nn.Module)
    return standard.module.eval()


@pytest.fixture(scope="session")
def points(net: nn.Module) -> tuple[Tensor, Tensor]:
    data = load_data("digits", split="test")
    with torch.no_grad():
        right = net(data.x).argmax(1) == data.y
    return data.x[right][:64], data.y[right][:64]
