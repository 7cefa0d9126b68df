"""Training attacks: admissible, effective, without side effects."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.networks.registry import small_cnn
from maskaudit.rng import PointRNG
from maskaudit.threat import Norm, ThreatModel
from maskaudit.train.adversaries import ascend, fgsm, pgd, random_start


def _points(n: int = 8) -> tuple[Tensor, Tensor, PointRNG]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 8, 8, generator=generator)
    return x, torch.arange(n) % 10, PointRNG.create(0, "test", torch.arange(n))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_random_start_fills_the_ball_whatever_the_batch(norm: Norm) -> None:
    threat = ThreatModel(norm, 0.05, (-9.0, 9.0))
    x, _, rng = _points(200)
    start = random_start(x, threat, rng, step=1)
    assert bool(threat.admissible(start, x).all())
    assert float(threat.distance(start, x).max()) > 0.99 * threat.eps
    part = torch.tensor([7, 3])
    torch.testing.assert_close(random_start(x[part], threat, rng.select(part), step=1), start[part], rtol=0, atol=0)
    assert not torch.equal(random_start(x, threat, rng, step=2), start)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_attacks_raise_the_loss_and_stay_admissible(norm: Norm) -> None:
    threat = ThreatModel(norm, 0.3)
    torch.manual_seed(0)
    model = small_cnn(batch_norm=True)
    x, y, rng = _points()
    start = random_start(x, threat, rng, step=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, many = fgsm(model, x, y, threat), pgd(model, x, y, threat, steps=5, start=start)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        clean, *losses = (float(F.cross_entropy(model(z), y)) for z in (x, one, many))
    assert min(losses) > clean
    for attacked in (one, many):
        assert bool(threat.admissible(attacked, x).all())
        assert not attacked.requires_grad


def test_fgsm_on_a_linear_model_is_the_closed_form() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    model = nn.Linear(3, 2, bias=False)
    model.weight.data.copy_(weight)
    x = torch.full((1, 3), 0.5)
    attacked = fgsm(model, x, torch.tensor([0]), ThreatModel("Linf", 0.2))
    torch.testing.assert_close(attacked, torch.tensor([[0.3, 0.7, 0.5]]))


def test_ascend_reaches_the_corner_that_maximises_a_linear_objective() -> None:
    slope = torch.tensor([[1.0, -1.0, 3.0]])
    x = torch.tensor([[0.5, 0.5, 0.95]])
    best = ascend(lambda z: (slope * z).sum(), x, ThreatModel("Linf", 0.1), steps=4, start=x)
    torch.testing.assert_close(best, torch.tensor([[0.6, 0.4, 1.0]]))
