"""Finite differences: exact on linear models, and through what autograd cannot see."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from maskaudit.attacks.finite_differences import _Blocks, finite_differences
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import Norm, ThreatModel, per_point_norm
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
    point_rng,
    quantised,
    sine,
    survivors,
    zero_backward,
)


def _left(model: nn.Module, subjects: Subjects, threat: ThreatModel, **settings: Any) -> float:
    x, y = correct_points(model, subjects.x, subjects.y, 60)
    attempt = finite_differences(Target(model), x, y, threat=threat, rng=point_rng(len(x)), **settings)
    return float(survivors(model, attempt.examples, x, y, threat).float().mean())


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
@pytest.mark.parametrize(
    ("mask", "limit"),
    [
        (sine, 0.03),
        (zero_backward, 0.03),
        (lambda base: quantised(base, 8), 0.05),
        (lambda base: quantised(base, 3), 0.25),  # the ball reaches few rounding thresholds: best known is .12 to .15
    ],
    ids=["sine", "zero backward", "8 levels", "3 levels"],
)
def test_masks_are_seen_through(
    subjects: Subjects, mask: Callable[[nn.Module], nn.Module], limit: float, threat: ThreatModel
) -> None:
    assert _left(mask(subjects.standard), subjects, threat, queries=2000) <= limit


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_blocks_replace_coordinates_in_large_inputs(subjects: Subjects, threat: ThreatModel) -> None:
    assert _left(subjects.standard, subjects, threat, queries=2000, coordinate_limit=16) <= 0.05


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("shape", [(12,), (2, 3, 2)])
def test_linear_optimum_in_one_step(norm: str, shape: tuple[int, ...]) -> None:
    """Coordinate-wise central differences of a linear model are its weights."""
    torch.manual_seed(1)
    weight = torch.randn(12)
    threat = ThreatModel("Linf" if norm == "Linf" else "L2", 0.1, (-1.0, 1.0))

    def model(x: Tensor) -> Tensor:
        z = x.flatten(1) @ weight
        return torch.stack([z + 50, -z], 1)

    x = 0.5 * (2 * torch.rand(9, *shape) - 1)
    y = torch.zeros(9, dtype=torch.int64)
    attempt = finite_differences(Target(model, bounds=threat.bounds), x, y, threat=threat, rng=point_rng(9), queries=1)
    step = -weight.sign() * 0.1 if norm == "Linf" else -0.1 * weight / weight.norm()
    reached = (attempt.examples - x).flatten(1)
    torch.testing.assert_close(reached, step.expand_as(reached), atol=2e-4, rtol=0)
    assert (attempt.queries == 2 * 12 + 3).all()


def test_random_directions_cover_large_inputs() -> None:
    """With fewer blocks than coordinates the two kinds of directions together still find most of the optimum."""
    torch.manual_seed(2)
    weight = torch.randn(300)
    threat = ThreatModel("L2", 1.0, (-9.0, 9.0))

    def model(x: Tensor) -> Tensor:
        z = x @ weight
        return torch.stack([z + 1000, -z], 1)

    x = torch.zeros(5, 300)
    y = torch.zeros(5, dtype=torch.int64)
    target = Target(model, bounds=threat.bounds)
    attempt = finite_differences(target, x, y, threat=threat, rng=point_rng(5), queries=4000, coordinate_limit=50)
    delta = attempt.examples - x
    assert (-(delta @ weight) / (per_point_norm(delta) * weight.norm()) > 0.7).all()


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_a_point_keeps_its_fate(subjects: Subjects, threat: ThreatModel) -> None:
    attack = functools.partial(finite_differences, queries=600)
    assert_same_fate(attack, subjects.robust, subjects.x[:50], subjects.y[:50], threat)


def test_vectors_and_two_classes(subjects: Subjects) -> None:
    model = binary(flattened(subjects.standard))
    x, y = correct_points(model, subjects.x.flatten(1), (subjects.y >= 5).long(), 50)
    attempt = finite_differences(Target(model), x, y, threat=LINF, rng=point_rng(50), queries=1000)
    assert survivors(model, attempt.examples, x, y, LINF).float().mean() < 0.1


def test_budget_and_bookkeeping(subjects: Subjects) -> None:
    x, y = subjects.x[:40], subjects.y[:40]
    target = Target(subjects.robust)
    attempt = finite_differences(target, x, y, threat=LINF, rng=point_rng(40), queries=500)
    broken = ~survivors(subjects.robust, attempt.examples, x, y, LINF)
    assert torch.equal(attempt.first_success > 0, broken)
    assert target.ledger.forwards == int(attempt.queries.sum())
    assert target.ledger.backwards == 0
    assert (attempt.queries < 500 + 131).all()


def test_points_of_a_random_model_leave_beyond_doubt_only(subjects: Subjects) -> None:
    target = Target(Noisy(subjects.standard, 0.5), draws=2)
    with target:
        attempt = finite_differences(target, subjects.x[:5], subjects.y[:5], threat=LINF, rng=point_rng(5), queries=300)
    assert_left_beyond_doubt(target, attempt, subjects.y, 300)


@pytest.mark.parametrize("norm", get_args(Norm))
def test_block_ends_are_judged_as_the_threat_model_does(norm: Norm) -> None:
    """The ends of a difference leave the iterate in one block only; their distances are added up block by block."""
    torch.manual_seed(0)
    threat = ThreatModel(norm, 0.1 if norm == "Linf" else 0.5)
    clean = torch.rand(5, 1, 12, 12)
    iterate = threat.project(clean + 0.2 * torch.randn_like(clean), clean)
    blocks = _Blocks.of(clean, 20)
    rng = PointRNG.create(0, "blocks", torch.arange(5))
    block, signs = blocks.layout(rng, torch.arange(5))
    assert blocks.count < 144
    end = (iterate.flatten(1) + 0.04 * signs).clamp(0, 1)
    step = SimpleNamespace(threat=threat, clean=clean)
    found = blocks.inside(step, iterate.flatten(1), end, block)  # type: ignore[arg-type]
    ends = torch.stack([torch.where(block == k, end, iterate.flatten(1)) for k in range(blocks.count)], dim=1)
    for k in range(blocks.count):
        assert torch.equal(found[:, k], threat.admissible(ends[:, k], clean.flatten(1)))
    assert 0 < int(found.sum()) < found.numel()
