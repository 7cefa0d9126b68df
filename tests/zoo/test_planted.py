"""The planted counterexample: there, out of sight, and known to those who know where to look."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit.data import load_data
from maskaudit.models import small_cnn
from maskaudit.threat import ThreatModel
from maskaudit.train.adversaries import pgd
from maskaudit.zoo.interface import Unmaskable
from maskaudit.zoo.planted import HiddenCorner, checkerboard, hidden_corner

THREAT = ThreatModel("Linf", 0.2)


@pytest.fixture(scope="module")
def trap() -> tuple[HiddenCorner, Tensor, Tensor]:
    """An untrained network with the trap, sixty digits, and what it says of them."""
    torch.manual_seed(0)
    net = HiddenCorner(small_cnn(width=4)).eval()
    x = load_data("digits").x[:60]
    return net, x, net(x).argmax(1)


def test_every_point_is_fooled_at_the_corner_and_none_before(trap: tuple[HiddenCorner, Tensor, Tensor]) -> None:
    net, x, said = trap
    corner = hidden_corner(x, THREAT)
    assert THREAT.admissible(corner, x).all()
    assert (net(corner).argmax(1) != said).all()
    torch.testing.assert_close(net(x), net.network(x))


def test_its_gradient_is_that_of_the_network_inside(trap: tuple[HiddenCorner, Tensor, Tensor]) -> None:
    net, x, said = trap
    gradients = []
    for module in (net, net.network):
        z = x.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(module(z).gather(1, said[:, None]).sum(), z)[0])
    torch.testing.assert_close(*gradients)


def test_the_twin_leads_to_the_corner(trap: tuple[HiddenCorner, Tensor, Tensor]) -> None:
    net, x, said = trap
    assert isinstance(net, Unmaskable)
    twin: nn.Module = net.unmasked()
    assert (twin(x).argmax(1) == said).all()
    found = pgd(twin, x, said, THREAT, steps=10, start=x)
    assert (net(found).argmax(1) != said).all()


def test_the_checkerboard_alternates() -> None:
    board = checkerboard(torch.zeros(1, 1, 3, 4))
    assert board.tolist() == [[-1, 1, -1, 1], [1, -1, 1, -1], [-1, 1, -1, 1]]
