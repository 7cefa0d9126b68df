"""Random noise: on the surface of the ball, the best draw kept."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from maskaudit.attacks.noise import random_noise, surface_noise
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from tests.attacks.subjects import (
    L2,
    LINF,
    Noisy,
    Subjects,
    assert_left_beyond_doubt,
    assert_same_fate,
    point_rng,
    survivors,
)


@pytest.mark.parametrize("threat", [ThreatModel("Linf", 0.1), ThreatModel("L2", 0.1)], ids=lambda t: t.norm)
@pytest.mark.parametrize("shape", [(30,), (3, 2, 5)])
def test_noise_has_full_size(threat: ThreatModel, shape: tuple[int, ...]) -> None:
    x = torch.full((50, *shape), 0.5)
    noisy = surface_noise(x, threat=threat, rng=point_rng(50), step=3)
    assert torch.allclose(threat.distance(noisy, x), torch.tensor(0.1, dtype=torch.float64), rtol=1e-4)
    assert threat.admissible(noisy, x).all()
    assert len({tuple(row.flatten().tolist()) for row in noisy}) == 50


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_more_draws_break_more(subjects: Subjects, threat: ThreatModel) -> None:
    x, y = subjects.x[:150], subjects.y[:150]
    left = []
    for draws in (1, 20, 200):
        attempt = random_noise(Target(subjects.standard), x, y, threat=threat, rng=point_rng(150), draws=draws)
        left.append(survivors(subjects.standard, attempt.examples, x, y, threat))
        assert (attempt.queries <= draws).all()
    assert not bool((left[1] & ~left[0]).any())
    assert not bool((left[2] & ~left[1]).any())
    assert left[2].float().mean() < left[0].float().mean()


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_a_point_keeps_its_fate(subjects: Subjects, threat: ThreatModel) -> None:
    attack = functools.partial(random_noise, draws=50)
    assert_same_fate(attack, subjects.standard, subjects.x[:60], subjects.y[:60], threat)


def test_points_of_a_random_model_leave_beyond_doubt_only(subjects: Subjects) -> None:
    target = Target(Noisy(subjects.standard, 0.5), draws=2)
    with target:
        attempt = random_noise(target, subjects.x[:6], subjects.y[:6], threat=LINF, rng=point_rng(6), draws=30)
    assert_left_beyond_doubt(target, attempt, subjects.y, 30)


def test_the_best_draw_is_kept() -> None:
    """On a model whose margin is the sum of the coordinates the largest sum of all draws comes back."""

    def model(x: Tensor) -> Tensor:
        z = x.sum(1)
        return torch.stack([100 - z, z], 1)

    threat = ThreatModel("Linf", 0.1)
    x, y = torch.full((8, 10), 0.5), torch.zeros(8, dtype=torch.int64)
    rng = point_rng(8)
    attempt = random_noise(Target(model), x, y, threat=threat, rng=rng, draws=25)
    stream = rng.fork("noise")
    sums = torch.stack([surface_noise(x, threat=threat, rng=stream, step=k).sum(1) for k in range(25)])
    torch.testing.assert_close(attempt.examples.sum(1), sums.amax(0))
