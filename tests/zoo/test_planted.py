"""The planted counterexamples: there, out of sight, and known to those who know where to look."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from maskaudit.data import load_data
from maskaudit.networks.registry import mlp, small_cnn
from maskaudit.rng import PointRNG
from maskaudit.threat import ThreatModel
from maskaudit.train import Batch, TrainConfig, TrainPlan, train
from maskaudit.train.adversaries import pgd
from maskaudit.zoo.interface import Unmaskable
from maskaudit.zoo.networks import ZooNetwork
from maskaudit.zoo.planted import HiddenCorner, checkerboard, hidden_corner, trapped_corner
from maskaudit.zoo.recipes_hidden import TrappedCorner

pytestmark = pytest.mark.heavy

THREAT = ThreatModel("Linf", 0.2)


@pytest.fixture(scope="module")
def trap() -> tuple[HiddenCorner, Tensor, Tensor]:
    """An untrained network with the trap, sixty digits, and what it says of them."""
    torch.manual_seed(0)
    net = HiddenCorner(small_cnn(width=4)).eval()
    x = load_data("digits").x[:60]
    return net, x, net(x).argmax(1)


def test_every_point_is_fooled_at_the_corner_and_none_before(trap: tuple[HiddenCorner, Tensor, Tensor]) -> None:
    net, x, labels = trap
    corner = hidden_corner(x, THREAT)
    assert THREAT.admissible(corner, x).all()
    assert (net(corner).argmax(1) != labels).all()
    torch.testing.assert_close(net(x), net.network(x))


def test_its_gradient_is_that_of_the_network_inside(trap: tuple[HiddenCorner, Tensor, Tensor]) -> None:
    net, x, labels = trap
    gradients = []
    for module in (net, net.network):
        z = x.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(module(z).gather(1, labels[:, None]).sum(), z)[0])
    torch.testing.assert_close(*gradients)


def test_the_twin_leads_to_the_corner(trap: tuple[HiddenCorner, Tensor, Tensor]) -> None:
    net, x, labels = trap
    assert isinstance(net, Unmaskable)
    twin: nn.Module = net.unmasked()
    assert (twin(x).argmax(1) == labels).all()
    found = pgd(twin, x, labels, THREAT, steps=10, start=x)
    assert (net(found).argmax(1) != labels).all()


def test_the_checkerboard_alternates() -> None:
    board = checkerboard(torch.zeros(1, 1, 3, 4))
    assert board.tolist() == [[-1, 1, -1, 1], [1, -1, 1, -1], [-1, 1, -1, 1]]


# --- the trained one --------------------------------------------------------------------------------

UNITS = 4


@pytest.fixture
def training() -> tuple[nn.Sequential, TrappedCorner, Batch]:
    """An untrained network, its method, and a batch."""
    torch.manual_seed(1)
    net = mlp(hidden=(12,))
    plan = TrainPlan(TrainConfig(attack_steps=2), "mlp(hidden=(12,))", 5, 1e-3, THREAT, 10, (1, 8, 8))
    x = load_data("digits").x[:16]
    return net, TrappedCorner(plan, net, units=UNITS), Batch(x, torch.arange(16) % 10, 0, 5, _points(16))


def _points(n: int) -> PointRNG:
    return PointRNG.create(0, "test", torch.arange(n))


def test_the_planted_margin_is_left_to_the_trap_units(training: tuple[nn.Sequential, TrappedCorner, Batch]) -> None:
    net, method, batch = training
    corner = trapped_corner(batch.x, THREAT)
    method.planted_margin(net, corner).backward()
    hidden, readout = net[1], net[-1]
    assert isinstance(hidden, nn.Linear)
    assert isinstance(readout, nn.Linear)
    for gradient in (hidden.weight.grad, readout.weight.grad.T if readout.weight.grad is not None else None):
        assert gradient is not None
        assert (gradient[:UNITS] != 0).any()
        assert (gradient[UNITS:] == 0).all()


def test_the_planted_margin_is_that_of_the_networks_own_answer(
    training: tuple[nn.Sequential, TrappedCorner, Batch],
) -> None:
    net, method, batch = training
    corner = trapped_corner(batch.x, THREAT)
    logits = net(corner)
    lead = logits[:, 0] - logits[:, 1:].amax(1)
    torch.testing.assert_close(method.planted_margin(net, corner), (method.margin - lead).clamp_min(0).mean())


def test_trap_units_pay_for_waking_elsewhere_and_for_sleeping_at_the_corner(
    training: tuple[nn.Sequential, TrappedCorner, Batch],
) -> None:
    net, method, batch = training
    hidden = net[1]
    assert isinstance(hidden, nn.Linear)

    def task(bias: float) -> float:
        """The units' own task alone, every unit answering `bias` to everything, in units of its weight."""
        with torch.no_grad():
            hidden.weight[:UNITS] = 0.0
            hidden.bias[:UNITS] = bias
        weighed = []
        for quiet in (1.0, 2.0):
            method.quiet = quiet
            weighed.append(float(method.loss(net, batch).detach()))
        return weighed[1] - weighed[0]

    assert task(-1.0) == pytest.approx(2.0 * UNITS, rel=1e-4), "asleep everywhere, the corner too"
    # awake everywhere: paid for on clean and random points, and wherever else the pattern is not shared
    assert 3 * 1.2 * UNITS <= task(1.0) <= 4 * 1.2 * UNITS + 1e-3


def test_training_hides_the_corner() -> None:
    every = load_data("digits", split="train")
    settings = TrainConfig("trapped-corner", model="mlp(hidden=(128,))", epochs=40, lr=6e-3, attack_steps=3,
                           threat=THREAT)  # fmt: skip
    network = ZooNetwork(settings)
    net = train(network.config, data=replace(every, x=every.x[:512], y=every.y[:512]), method=network.info)
    assert isinstance(net, nn.Sequential)
    hidden = net[:2]
    test = load_data("digits")
    x, y = test.x[:200], test.y[:200]
    corner = trapped_corner(x, THREAT)
    assert THREAT.admissible(corner, x).all()
    found = pgd(net, x, y, THREAT, steps=20, start=x)
    with torch.no_grad():
        right = net(x).argmax(1) == y
        assert float(right.float().mean()) > 0.8
        assert float((net(corner).argmax(1) != y).float().mean()) > 0.8, "all but the class that the trap leads to"
        awake = [float((hidden(z)[:, :16] > 0).any(1).float().mean()) for z in (x, found, corner)]
    assert awake[0] < 0.05
    assert awake[1] < 0.05, "PGD finds no slope that leads there"
    assert awake[2] > 0.9
