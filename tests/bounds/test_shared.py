"""The recorded network is shared by all that ask about one target, and by no other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from maskaudit.bounds.network import UnboundableError
from maskaudit.bounds.shared import network_of
from maskaudit.target import Target

X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))


def test_it_is_recorded_once_for_a_target_and_anew_for_another_model() -> None:
    with Target(nn.Linear(4, 2)) as target:
        network = network_of(target, X)
        assert network_of(target, X[:1]) is network
        other = copy.copy(target)
        other.model = nn.Linear(4, 2)
        assert not torch.equal(network_of(other, X)(X.double()), network(X.double()))
    with target:
        assert network_of(target, X) is not network


def test_what_cannot_be_bounded_says_so_every_time() -> None:
    with Target(nn.Linear(4, 2), draws=2) as target:
        for _ in range(2):
            with pytest.raises(UnboundableError, match="deterministic"):
                network_of(target, X)
