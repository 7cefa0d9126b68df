"""Branch and bound finds what gradients do not lead to, proves nothing that it did not bound, and refuses by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.mip import solve
from maskaudit.attacks.branch_and_bound import branch_and_bound, effort, searchable
from maskaudit.attacks.interface import AttackUnavailable
from maskaudit.attacks.pgd import pgd
from maskaudit.bounds.branching import Margins
from maskaudit.bounds.capture import captured
from maskaudit.bounds.certificate import differences
from maskaudit.bounds.linear import Region, intervals
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from tests.bounds.networks import detector, mlp, smooth_detector

RNG = PointRNG.create(0, "search", torch.arange(20))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_it_finds_a_corner_that_gradients_miss(norm: str) -> None:
    torch.manual_seed(0)
    model, x, y, corner = detector()
    threat = ThreatModel("Linf", 0.2) if norm == "Linf" else ThreatModel("L2", 0.2 * 12**0.5 + 0.02)
    with Target(model) as target:
        assert int(target.raw(corner).argmax()) == 1
        usual = pgd(target, x, y, threat=threat, rng=RNG.select(slice(0, 1)), steps=100)
        assert int(target.raw(usual.examples).argmax()) == 0
        found = branch_and_bound(target, x, y, threat=threat, rng=RNG.select(slice(0, 1)), rounds=20)
        assert threat.admissible(found.examples, x).all()
        assert int(target.raw(found.examples).argmax()) == 1
        assert int(found.first_success) == int(found.queries) > 0


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_it_finds_a_corner_behind_saturated_units(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x, corner = smooth_detector(activation)
    y, threat = torch.tensor([0]), ThreatModel("Linf", 0.2)
    with Target(model) as target:
        assert target.raw(torch.cat([x, corner])).argmax(1).tolist() == [0, 1]
        usual = pgd(target, x, y, threat=threat, rng=RNG.select(slice(0, 1)), steps=100)
        assert int(target.raw(usual.examples).argmax()) == 0
        found = branch_and_bound(target, x, y, threat=threat, rng=RNG.select(slice(0, 1)), rounds=20)
        assert threat.admissible(found.examples, x).all()
        assert int(target.raw(found.examples).argmax()) == 1


def test_parts_of_a_smooth_network_are_bounded() -> None:
    torch.manual_seed(4)
    x, threat = torch.rand(1, 4), ThreatModel("Linf", 0.3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 3))
    with torch.no_grad():
        for weights in model.parameters():
            weights *= 4
    with Target(model) as target:
        network, y = captured(target, x), target.raw(x).argmax(1)
        region = Region.around(x, threat)
        with torch.no_grad():
            found = intervals(network, region, tighten=True)
        rows = differences(3, y)[0]
        margins = Margins(network, region, found, rows, torch.zeros(2, dtype=torch.float64))
        parts = margins.children(margins.whole(), 3)
        tried = threat.project(x + 0.3 * (2 * torch.rand(4000, 4) - 1), x).double()
        values = network.values(tried)
    entering = torch.cat([values[network.steps[number].reads[0]] for number in network.activations], dim=1)
    covered = 0
    for goal, signs, bound in zip(parts.goal, parts.signs, parts.bound, strict=True):
        inside = (signs * (entering - margins.middle) >= 0).all(1)
        covered += int(inside.sum())
        assert (values[-1][inside] @ rows[goal] >= bound - 1e-9).all()
    assert covered >= 2 * len(tried)
    assert parts.bound.min() > margins.whole().bound.min()


def test_it_breaks_every_point_that_an_exact_solver_breaks() -> None:
    torch.manual_seed(3)
    x, threat = torch.rand(8, 4), ThreatModel("Linf", 0.12)
    with Target(mlp(4, 12, 12, 3, scale=3)) as target:
        network, y = captured(target, x), target.raw(x).argmax(1)
        attempt = branch_and_bound(target, x, y, threat=threat, rng=RNG.select(slice(0, 8)), rounds=60)
        alone = branch_and_bound(target, x[5:6], y[5:6], threat=threat, rng=RNG.select(slice(5, 6)), rounds=60)
        assert torch.equal(alone.examples, attempt.examples[5:6])
        truth = []
        for row in range(len(x)):
            region = Region.around(x[row : row + 1], threat)
            with torch.no_grad():
                found = intervals(network, region, tighten=True)
            rows = differences(3, y[row : row + 1])[0]
            truth.append(any(solve(network, region, found, one, nodes=10_000).example is not None for one in rows))
        assert (target.raw(attempt.examples).argmax(1) != y).tolist() == truth
    assert True in truth
    assert False in truth


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(4, 3), "affine"),
        (nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), "gelu"),
        (nn.Sequential(nn.Linear(4, 20_000), nn.ReLU(), nn.Linear(20_000, 3)), "20000 activations"),
    ],
)
def test_it_says_what_it_cannot_search(model: nn.Module, reason: str) -> None:
    with Target(model) as target, pytest.raises(AttackUnavailable, match=reason):
        searchable(target, torch.rand(2, 4))


def test_effort_is_in_rounds_of_a_network() -> None:
    with Target(mlp(4, 8, 3)) as small, Target(mlp(4, 1000, 1000, 3)) as large:
        few, many = (effort(searchable(target, torch.rand(2, 4)), 1e10) for target in (large, small))
        assert 0 < 5 * few < many
        assert effort(searchable(small, torch.rand(2, 4)), 1e6) == 0
