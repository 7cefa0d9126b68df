"""Certificates are sound: nothing inside the ball, however it is found, breaks what they prove."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit.networks.registry import small_cnn, smoothed_units
from maskaudit.threat import ThreatModel
from maskaudit.zoo.certificates import interval_certificate, smoothing_certificate, worst_logits


def _points(n: int = 24) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return small_cnn(width=3).eval()


def test_interval_bounds_hold_on_corners_and_are_exact_at_radius_zero(net: nn.Module) -> None:
    x = _points()
    y = net(x).argmax(1)
    logits = net(x)
    exact = worst_logits(net, x, y, 0.0, (0.0, 1.0))
    torch.testing.assert_close(exact, logits - logits.gather(1, y[:, None]), atol=1e-5, rtol=1e-5)
    worst = worst_logits(net, x, y, 0.02, (0.0, 1.0))
    assert (worst >= exact - 1e-6).all()
    assert (worst > exact + 1e-4).any()
    for seed in range(20):
        signs = torch.empty_like(x).bernoulli_(0.5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        moved = net((x + 0.02 * signs).clamp(0, 1))
        assert (moved - moved.gather(1, y[:, None]) <= worst + 1e-5).all()


def test_bounds_of_a_linear_network_are_tight() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    x, y = _points() * 0.5 + 0.25, torch.zeros(24, dtype=torch.int64)
    readout = net[1]
    assert isinstance(readout, nn.Linear)
    for k in (1, 2):
        direction = (readout.weight[k] - readout.weight[0]).sign().view(1, 8, 8)
        reached = net(x + 0.1 * direction)
        worst = worst_logits(net, x, y, 0.1, (0.0, 1.0))
        torch.testing.assert_close(worst[:, k], reached[:, k] - reached[:, 0], atol=1e-5, rtol=1e-5)


def test_interval_certificate_grants_less_at_a_larger_radius_and_nothing_to_wrong_points(net: nn.Module) -> None:
    x = _points()
    y = net(x).argmax(1)
    shares = [float(interval_certificate(net, x, y, eps).float().mean()) for eps in (1e-6, 1e-3, 0.3)]
    assert shares[0] == 1.0
    assert shares[0] > shares[2] == 0.0
    assert not interval_certificate(net, x, (y + 1) % 10, 1e-6).any()


def test_interval_bounds_refuse_what_they_do_not_know() -> None:
    with pytest.raises(TypeError, match="GELU"):
        worst_logits(small_cnn(width=2, activation="gelu"), _points(), torch.zeros(24).long(), 0.1, (0.0, 1.0))
    with pytest.raises(TypeError, match="linear readout"):
        worst_logits(nn.Sequential(nn.Flatten()), _points(), torch.zeros(24).long(), 0.1, (0.0, 1.0))


def test_smoothed_scores_are_the_mean_over_noise() -> None:
    torch.manual_seed(0)
    net = smoothed_units(hidden=32, sigma=0.5)
    x = _points(3)
    noise = 0.5 * torch.randn(20_000, 3, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        weight, bias = net.units.weight.double(), net.units.bias.double()
        base = torch.special.ndtr((x.flatten(1) + noise) @ weight.T + bias) @ net.mixture.double().softmax(1).T
        torch.testing.assert_close(net.scores(x).double(), base.mean(0), atol=0.01, rtol=0)


def test_smoothed_quantiles_are_lipschitz_and_the_certificate_uses_it() -> None:
    """The steepest direction found by ascent never beats 1/σ, and what is certified survives it."""
    torch.manual_seed(0)
    net = smoothed_units(hidden=16, sigma=0.2)
    with torch.no_grad():
        net.mixture.mul_(5.0)
    x, threat = _points(), ThreatModel("L2", 0.05)
    y = net(x).argmax(1)
    moved = x.clone()
    for _ in range(50):
        moved.requires_grad_(True)
        scores = net(moved)
        rival = scores.scatter(1, y[:, None], -torch.inf).amax(1) - scores.gather(1, y[:, None]).squeeze(1)
        (gradient,) = torch.autograd.grad(rival.sum(), moved)
        moved = threat.project(moved.detach() + 0.02 * threat.step_direction(gradient), x)
    with torch.no_grad():
        change = (net(moved) - net(x)).abs().amax(1)
        assert (change <= threat.distance(moved, x).float() / 0.2 * (1 + 1e-3)).all()
        certified = smoothing_certificate(net, x, y, threat.eps)
        still = net(moved).argmax(1) == y
    assert int(certified.sum()) > 0
    assert still[certified].all()
    assert not still.all(), "the attack breaks something, so the certificate had something to withhold"
    assert not smoothing_certificate(net, x, (y + 1) % 10, 1e-6).any()
