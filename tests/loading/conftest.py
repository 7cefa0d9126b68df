"""Fixtures of this folder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskaudit.loading import LoadedModel

from .nets import Net


@pytest.fixture
def net() -> Net:
    torch.manual_seed(3)
    module = Net()
    module(torch.randn(20, 4))  # moves the running statistics away from their start values
    return module.eval()


@pytest.fixture
def digits_net(standard: LoadedModel) -> nn.Module:
    """The standard digits network."""
    assert isinstance(standard.module, nn.Module)
    return standard.module
