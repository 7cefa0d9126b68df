"""Planted examples: the planted side is really inside the ball, chance seldom finds it, a search does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.noise import random_noise, surface_noise
from maskaudit.attacks.square import square
from maskaudit.auditing.planted import CORNERS, PlantedModel, plant, solve_planted
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.preserve import preserved_random_state
from maskaudit.threat import Norm, ThreatModel

N, SIDE, K, PROBLEMS = 40, 6, 10, 24
X = torch.rand(N, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
THREATS = [ThreatModel("Linf", 0.1), ThreatModel("L2", 0.5)]


def network(kind: str) -> nn.Module:
    """An untrained linear model or MLP."""
    with preserved_random_state():
        torch.manual_seed(0)
        layers = [nn.Linear(SIDE * SIDE, K)] if kind == "linear" else [
            nn.Linear(SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, K)
        ]  # fmt: skip
        return nn.Sequential(nn.Flatten(), *layers)


def make_rng(n: int = N) -> PointRNG:
    return PointRNG.create(0, "planted", torch.arange(n))


def searching(queries: int) -> AttackSpec:
    return AttackSpec("square", "Square", "score", "challenger", square, {"queries": queries})


GUESSING = AttackSpec("noise", "Noise", "random", "challenger", random_noise, {"draws": 1})


def planted(kind: str, threat: ThreatModel) -> tuple[PlantedModel, Tensor]:
    return plant(Target(network(kind)), X, threat=threat, rng=make_rng().fork("plant"), problems=PROBLEMS)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_one_of_the_admissible_corners_and_no_other_is_class_1(kind: str, threat: ThreatModel) -> None:
    model, rows = planted(kind, threat)
    assert len(rows) == PROBLEMS
    anchors = X[rows]
    solved = torch.zeros(len(rows), dtype=torch.int64)
    stream = make_rng().fork("plant").select(rows)
    for step in range(CORNERS):
        corner = surface_noise(anchors, threat=threat, rng=stream, step=step)
        assert bool(threat.admissible(corner, anchors).all())
        solved += model(corner).argmax(1)
    assert solved.tolist() == [1] * len(rows)
    assert model(anchors).argmax(1).tolist() == [0] * len(rows)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_search_solves_most_problems_and_chance_few(kind: str, threat: ThreatModel) -> None:
    outcome = solve_planted(
        Target(network(kind)), X, (searching(400),), threat=threat, rng=make_rng(), problems=PROBLEMS
    )
    assert outcome.problems == PROBLEMS
    assert outcome.found >= 0.75 * PROBLEMS
    assert outcome.random_found <= 0.25 * PROBLEMS  # with CORNERS draws each


@pytest.mark.parametrize("spec", [searching(1), GUESSING], ids=["one query", "one guess"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_a_crippled_search_fails(spec: AttackSpec, threat: ThreatModel) -> None:
    outcome = solve_planted(Target(network("mlp")), X, (spec,), threat=threat, rng=make_rng(), problems=PROBLEMS)
    assert outcome.problems == PROBLEMS
    assert outcome.found <= 0.1 * PROBLEMS


def test_a_problem_counts_when_any_search_solves_it() -> None:
    target = Target(network("mlp"))
    together = solve_planted(
        target, X, (GUESSING, searching(400)), threat=THREATS[0], rng=make_rng(), problems=PROBLEMS
    )
    alone = solve_planted(target, X, (searching(400),), threat=THREATS[0], rng=make_rng(), problems=PROBLEMS)
    assert together.found >= alone.found
    assert solve_planted(target, X, (), threat=THREATS[0], rng=make_rng(), problems=PROBLEMS).found == 0


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_the_logits_does_not_matter(scale: float) -> None:
    net = network("mlp")
    plain, scaled = (
        solve_planted(Target(model), X, (searching(200),), threat=THREATS[0], rng=make_rng(), problems=PROBLEMS)
        for model in (net, lambda x: scale * net(x))
    )
    assert abs(plain.found - scaled.found) <= 2
    assert scaled.problems == PROBLEMS


@pytest.mark.parametrize("model", [lambda x: torch.ones(len(x), 3), lambda x: torch.arange(3.0).expand(len(x), 3)])
def test_scores_that_never_vary_carry_no_problem(model: Callable[[Tensor], Tensor]) -> None:
    outcome = solve_planted(Target(model), X, (searching(10),), threat=THREATS[0], rng=make_rng())
    assert (outcome.problems, outcome.found, outcome.random_found) == (0, 0, 0)


@pytest.mark.parametrize(("noise", "least", "most"), [(1e-4, PROBLEMS, PROBLEMS), (10.0, 0, 2)])
def test_what_the_noise_of_a_random_model_put_there_is_not_planted(noise: float, least: int, most: int) -> None:
    net = network("mlp")
    target = Target(lambda x: net(x) + noise * torch.randn(len(x), K), draws=2)
    with preserved_random_state():
        torch.manual_seed(1)
        _, rows = plant(target, X, threat=THREATS[0], rng=make_rng(), problems=PROBLEMS)
    assert least <= len(rows) <= most


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_anchors_lie_far_enough_apart_to_tell_the_problems_apart(norm: Norm) -> None:
    threat = ThreatModel(norm, 0.3 if norm == "Linf" else 0.9)
    crowded = torch.cat([X[:10], X[:10] + 0.01, X[10:20]]).clamp(0, 1)
    _, rows = plant(Target(network("mlp")), crowded, threat=threat, rng=make_rng(30), problems=PROBLEMS)
    assert len(rows) > 5
    for i, a in enumerate(rows.tolist()):
        for b in rows.tolist()[i + 1 :]:
            assert float(threat.distance(crowded[a : a + 1], crowded[b : b + 1])) > 2 * threat.eps


def test_the_planted_model_keeps_the_gradient_of_the_target_and_counts_its_passes() -> None:
    target = Target(network("mlp"))
    model, rows = plant(target, X, threat=THREATS[0], rng=make_rng(), problems=4)
    before = target.ledger.copy()
    leaf = X[rows].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    assert bool((gradient.flatten(1) != 0).any(1).all())
    assert target.ledger.since(before).forwards == len(rows)


def test_the_callers_random_state_is_kept() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    solve_planted(Target(network("linear")), X, (searching(5),), threat=THREATS[0], rng=make_rng(), problems=4)
    assert torch.equal(torch.get_rng_state(), before)
