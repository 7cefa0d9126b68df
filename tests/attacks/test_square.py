"""Square attack: strength against torchattacks, shapes, budgets, plateaus, independence of batches."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from maskaudit.attacks.square import square
from maskaudit.attacks.square_canvas import eta_pattern
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from tests.attacks.subjects import (
    L2,
    LINF,
    Noisy,
    Subjects,
    assert_left_beyond_doubt,
    assert_same_fate,
    binary,
    correct_points,
    flattened,
    one_hot,
    point_rng,
    survivors,
)


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_not_weaker_than_torchattacks(subjects: Subjects, threat: ThreatModel) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    x, y = subjects.x[:250], subjects.y[:250]
    attempt = square(Target(subjects.robust), x, y, threat=threat, rng=point_rng(250), queries=500)
    ours = survivors(subjects.robust, attempt.examples, x, y, threat)
    state = torch.get_rng_state()
    theirs_attack = torchattacks.Square(subjects.robust, norm=threat.norm, eps=threat.eps, n_queries=500, seed=0)
    examples = threat.project(theirs_attack(x, y), x)
    torch.set_rng_state(state)
    theirs = survivors(subjects.robust, examples, x, y, threat)
    assert ours.float().mean() <= theirs.float().mean() + 0.02
    assert (attempt.queries <= 500).all()


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_a_point_keeps_its_fate(subjects: Subjects, threat: ThreatModel) -> None:
    attack = functools.partial(square, queries=60)
    assert_same_fate(attack, subjects.robust, subjects.x[:60], subjects.y[:60], threat)


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_vectors_and_two_classes(subjects: Subjects, threat: ThreatModel) -> None:
    model = binary(flattened(subjects.standard))
    x, y = correct_points(model, subjects.x.flatten(1), (subjects.y >= 5).long(), 60)
    attempt = square(Target(model), x, y, threat=threat, rng=point_rng(60), queries=500)
    assert attempt.examples.shape == x.shape
    assert survivors(model, attempt.examples, x, y, threat).float().mean() < 0.3


def test_plateaus_are_crossed(subjects: Subjects) -> None:
    """All proposals of a one-hot model tie; the drift finds what a frozen start would not."""
    model = one_hot(subjects.standard)
    x, y = subjects.x[:100], subjects.y[:100]
    attempt = square(Target(model), x, y, threat=LINF, rng=point_rng(100), queries=500)
    assert survivors(model, attempt.examples, x, y, LINF).float().mean() < 0.55  # a strict rule leaves .67


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_score_scales_change_nothing(subjects: Subjects, scale: float) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return subjects.standard(x) * scale

    x, y = subjects.x[:40], subjects.y[:40]
    plain = square(Target(subjects.standard), x, y, threat=LINF, rng=point_rng(40), queries=100)
    scaled = square(Target(Scaled()), x, y, threat=LINF, rng=point_rng(40), queries=100)
    assert torch.equal(plain.first_success > 0, scaled.first_success > 0)


def test_first_success_and_queries_agree(subjects: Subjects) -> None:
    x, y = subjects.x[:80], subjects.y[:80]
    target = Target(subjects.standard)
    attempt = square(target, x, y, threat=LINF, rng=point_rng(80), queries=120)
    broken = ~survivors(subjects.standard, attempt.examples, x, y, LINF)
    assert torch.equal(attempt.first_success > 0, broken)
    assert torch.equal(attempt.queries[broken], attempt.first_success[broken])
    assert (attempt.queries[~broken] == 120).all()
    assert target.ledger.forwards == int(attempt.queries.sum())


def test_points_of_a_random_model_leave_beyond_doubt_only(subjects: Subjects) -> None:
    x, y = subjects.x[:10], subjects.y[:10]
    target = Target(Noisy(subjects.standard, 0.5), draws=2)
    with target:
        attempt = square(target, x, y, threat=LINF, rng=point_rng(10), queries=40)
    assert_left_beyond_doubt(target, attempt, subjects.y, 40)


def test_colour_images_and_shifted_bounds() -> None:
    """A linear model in [−1, 1]: the attack gets most of the way to the optimum, the dual norm times ε."""
    torch.manual_seed(0)
    weight = torch.randn(3 * 6 * 5)
    threat = ThreatModel("Linf", 0.1, (-1.0, 1.0))

    def model(x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1) @ weight
        return torch.stack([z + 1000, -z], 1)

    x = 0.8 * (2 * torch.rand(20, 3, 6, 5) - 1)
    y = torch.zeros(20, dtype=torch.int64)
    target = Target(model, bounds=threat.bounds)
    attempt = square(target, x, y, threat=threat, rng=point_rng(20), queries=1500)
    assert threat.admissible(attempt.examples, x).all()
    gain = target.margin(target.scores(attempt.examples), y) - target.margin(target.scores(x), y)
    assert (gain > 0.95 * 2 * threat.eps * weight.abs().sum()).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 3), (6, 6), (9, 9)])
def test_eta_has_unit_norm_and_two_signs(size: tuple[int, int]) -> None:
    eta = eta_pattern(*size)
    assert eta.shape == size
    assert float(eta.norm()) == pytest.approx(1.0, abs=1e-5)
    if size != (1, 1):
        assert eta.min() < 0 < eta.max()


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 1, 1), (3, 2, 2), (1, 1, 9)])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_tiny_inputs(shape: tuple[int, ...], norm: str) -> None:
    threat = ThreatModel("Linf" if norm == "Linf" else "L2", 0.3)
    x = torch.full((4, *shape), 0.5)
    y = torch.zeros(4, dtype=torch.int64)

    def model(x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1).mean(1)
        return torch.stack([0.6 - z, z - 0.6], 1)

    attempt = square(Target(model), x, y, threat=threat, rng=point_rng(4), queries=200)
    assert threat.admissible(attempt.examples, x).all()
    if norm == "Linf":
        assert (attempt.first_success > 0).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (64,)], ids=str)
def test_from_a_start_that_nearly_breaks_a_point_few_queries_do(shape: tuple[int, ...]) -> None:
    """All pixels but two must be on one side: from close by the search is quick, the paper's pattern is far away."""
    side = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).float() * 2 - 1

    def model(x: torch.Tensor) -> torch.Tensor:
        right = ((x - 0.5) * side > 0.09).flatten(1).sum(dim=1)
        return torch.stack([torch.full_like(right, 61.5, dtype=torch.float32), right.float()], dim=1)

    x, y = torch.full((20, *shape), 0.5), torch.zeros(20, dtype=torch.int64)
    starts = x + 0.2 * side  # is moved into the ball
    starts.flatten(1)[:, :4] = 0.5
    settings = {"threat": ThreatModel("Linf", 0.1), "rng": point_rng(20), "queries": 600, "p_init": 0.1}
    near, far = (square(Target(model), x, y, starts=begin, **settings) for begin in (starts, None))  # type: ignore[arg-type]
    assert bool((near.first_success > 1).all() & (far.first_success > 1).all())
    assert float(near.first_success.float().mean()) < 0.7 * float(far.first_success.float().mean())
    assert bool(settings["threat"].admissible(near.examples, x).all())  # type: ignore[attr-defined]
