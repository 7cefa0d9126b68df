"""FGSM and PGD: closed forms, bookkeeping, and strength against torchattacks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskaudit.attacks.interface import BestCandidates
from maskaudit.attacks.pgd import fgsm, pgd, random_start
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.preserve import preserved
from maskaudit.threat import Norm, ThreatModel

N = 30
THREATS = [ThreatModel("Linf", 0.1, (-5.0, 5.0)), ThreatModel("L2", 0.4, (-5.0, 5.0))]
SHAPES = [(12,), (3, 2, 2)]


def make_rng(n: int = N, seed: int = 0) -> PointRNG:
    return PointRNG.create(seed, "test", torch.arange(n))


def exact_linear(shape: tuple[int, ...], k: int) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    """A linear model whose result for a point is the same bit for bit in any batch; its weight, points, labels."""
    generator = torch.Generator().manual_seed(len(shape) + k)
    weight = torch.randn(torch.Size(shape).numel(), k, generator=generator, dtype=torch.float64)
    x = torch.rand(N, *shape, generator=generator)

    def model(x: Tensor) -> Tensor:
        return (x.flatten(1).double()[:, :, None] * weight).sum(1)

    return model, weight, x, model(x).argmax(1)


def best_margin(weight: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """The largest margin that a linear model shows anywhere in the ball: max_j (z_j − z_y + ε‖w_j − w_y‖*)."""
    scores = x.flatten(1).double() @ weight
    direction = weight.T[None] - weight.T[y][:, None]
    dual = direction.abs().sum(2) if threat.norm == "Linf" else direction.norm(dim=2)
    reach = scores - scores.gather(1, y[:, None]) + threat.eps * dual
    return reach.scatter(1, y[:, None], -torch.inf).amax(1)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_linear_classes_are_solved_exactly(threat: ThreatModel, shape: tuple[int, ...]) -> None:
    """The optimum is x + ε·sign(g) for Linf and x + ε·g/‖g‖ for L2, whatever the (monotone) loss."""
    model, weight, x, y = exact_linear(shape, 2)
    target = Target(model, bounds=threat.bounds)
    g = (weight.T[1 - y] - weight.T[y]).float().view(N, *shape)
    unit = g.sign() if threat.norm == "Linf" else g / g.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))
    optimum = x + threat.eps * unit
    for attempt in (
        fgsm(target, x, y, threat=threat, rng=make_rng()),
        pgd(target, x, y, threat=threat, rng=make_rng(), steps=60, relative_step=0.25),
        pgd(target, x, y, threat=threat, rng=make_rng(), steps=10, loss="margin", start="clean"),
    ):
        reached = target.margin(target.scores(attempt.examples), y)
        best = best_margin(weight, x, y, threat).float()
        unbroken = attempt.first_success < 0
        assert bool(threat.admissible(attempt.examples, x).all())
        assert torch.equal(unbroken, best <= 0)
        assert torch.allclose(attempt.examples[unbroken], optimum[unbroken], atol=2e-4)
        assert torch.allclose(reached[unbroken], best[unbroken], atol=1e-3)
        assert bool((reached[~unbroken] > 0).all())


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_several_linear_classes_are_broken_exactly_when_they_can_be(threat: ThreatModel) -> None:
    model, weight, x, y = exact_linear((12,), 5)
    target = Target(model, bounds=threat.bounds)
    reachable = best_margin(weight, x, y, threat) > 0
    assert 0 < int(reachable.sum()) < N, "the case must have both kinds of points"
    attempt = pgd(target, x, y, threat=threat, rng=make_rng(), loss="margin", steps=100)
    assert not bool((attempt.first_success >= 0)[~reachable].any())
    assert float((attempt.first_success >= 0)[reachable].float().mean()) > 0.9


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_tight_box_is_respected(norm: Norm) -> None:
    threat = ThreatModel(norm, 0.5)
    model, _, x, y = exact_linear((3, 2, 2), 4)
    attempt = pgd(Target(model), x, y, threat=threat, rng=make_rng())
    assert bool(threat.admissible(attempt.examples, x).all())


def test_the_seed_decides() -> None:
    model, _, x, y = exact_linear((12,), 3)
    a, b, c = (
        pgd(Target(model), x, y, threat=THREATS[0], rng=make_rng(seed=seed), steps=1).examples for seed in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_random_start_fills_the_ball(norm: Norm) -> None:
    threat = ThreatModel(norm, 0.1)
    x = torch.full((4000, 2), 0.5)
    start = random_start(x, threat=threat, rng=make_rng(4000))
    assert bool(threat.admissible(start, x).all())
    share_within_half = float((threat.distance(start, x) < 0.05).float().mean())
    # Linf: area of the half-sized ball in the plane; L2: distances are uniform
    assert share_within_half == pytest.approx(0.25 if norm == "Linf" else 0.5, abs=0.03)
    assert float((start - x).mean(0).abs().max()) < 0.005
    assert not torch.equal(start, random_start(x, threat=threat, rng=make_rng(4000), step=1))


def test_points_that_are_broken_cost_no_more_passes() -> None:
    model, _, x, y = exact_linear((12,), 2)
    target = Target(model, bounds=(-5.0, 5.0))
    attempt = pgd(target, x, y, threat=ThreatModel("Linf", 4.0, (-5.0, 5.0)), rng=make_rng(), steps=20)
    assert torch.equal(attempt.queries, attempt.first_success)
    assert target.ledger.backwards == int(attempt.queries.sum()) < 21 * N
    assert target.ledger.forwards == N + int(attempt.queries.sum())


def test_with_a_reject_class_every_point_gets_the_whole_budget() -> None:
    model, _, x, y = exact_linear((12,), 3)
    target = Target(model, bounds=(-5.0, 5.0), reject_class=2)
    attempt = pgd(target, x, y, threat=ThreatModel("Linf", 4.0, (-5.0, 5.0)), rng=make_rng(), steps=9)
    assert attempt.queries.tolist() == [10] * N
    assert int((attempt.first_success >= 0).sum()) > N // 4
    assert bool((attempt.first_success <= 10).all())


def test_the_best_candidate_is_kept_not_the_last() -> None:
    """One step of the right length crosses a thin adversarial shell; the next leaves it on the other side."""
    target = Target(lambda x: torch.stack([torch.full((len(x),), 0.01), 0.02 - (x[:, 0] - 0.6).abs()], 1))
    x, y = torch.tensor([[0.5]]), torch.tensor([0])
    target.draws = 2  # no early stopping
    attempt = pgd(
        target, x, y, threat=ThreatModel("Linf", 0.3), rng=make_rng(1), steps=10, step_size=0.1, start="clean"
    )
    assert float(attempt.examples) == pytest.approx(0.6)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.nn.functional.one_hot((x[:, 0] > 0.4).long(), 2),
        lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], 1).sqrt() * torch.where(x[:, :1] > 2, torch.inf, 1.0),
    ],
    ids=["no gradient", "infinite gradient at the bounds"],
)
def test_useless_gradients_never_lead_out_of_the_ball(model: Callable[[Tensor], Tensor]) -> None:
    threat = ThreatModel("L2", 0.4)
    x = torch.tensor([[0.5, 0.1], [1.0, 0.0], [0.0, 1.0]])
    attempt = pgd(Target(model), x, torch.tensor([1, 0, 1]), threat=threat, rng=make_rng(3), steps=5)
    assert bool(threat.admissible(attempt.examples, x).all())


def test_no_graph_is_kept() -> None:
    kept: list[weakref.ref[Tensor]] = []

    def model(x: Tensor) -> Tensor:
        hidden = (x**2).clone()
        kept.append(weakref.ref(hidden))
        return hidden[:, :3]

    x = torch.rand(5, 4)
    attempt = pgd(Target(model), x, torch.full((5,), 2), threat=THREATS[0], rng=make_rng(5))
    gc.collect()
    assert len(kept) > 1
    assert all(reference() is None for reference in kept)
    assert not attempt.examples.requires_grad


# --- the active set -------------------------------------------------------------------------------


def test_best_candidates_keep_the_largest_margin() -> None:
    best = BestCandidates(torch.zeros(3, 1))
    best.offer(torch.tensor([0, 2]), torch.tensor([[1.0], [1.0]]), torch.tensor([-1.0, 0.5]))
    best.offer(torch.tensor([2, 0]), torch.tensor([[2.0], [2.0]]), torch.tensor([0.4, -0.5]))
    assert best.examples.flatten().tolist() == [2.0, 0.0, 1.0]


# --- strength -------------------------------------------------------------------------------------


def broken_by_torchattacks(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, name: str, **settings: Any
) -> Tensor:
    """Points (N,) that an attack of torchattacks breaks, scored here."""
    torchattacks = pytest.importorskip("torchattacks")
    with preserved(model, seed=0):
        attack = getattr(torchattacks, name)(model.eval(), eps=threat.eps, **settings)
        x_adv = attack(x.clone(), y)
        assert bool(threat.admissible(x_adv, x).all())
        with torch.no_grad():
            return model(x_adv).argmax(1) != y


@pytest.mark.parametrize("start", ["clean", "random"])
@pytest.mark.parametrize(("threat", "other"), [(ThreatModel("Linf", 0.2), "PGD"), (ThreatModel("L2", 1.0), "PGDL2")])
def test_not_weaker_than_torchattacks(subjects: Any, threat: ThreatModel, other: str, start: str) -> None:
    x, y = subjects.x[:300], subjects.y[:300]
    step = 2.5 * threat.eps / 20
    settings = {"alpha": step, "steps": 20, "random_start": start == "random"}
    theirs = broken_by_torchattacks(subjects.robust, x, y, threat, other, **settings)
    attempt = pgd(Target(subjects.robust), x, y, threat=threat, rng=make_rng(len(x)), steps=20, start=start)
    ours = attempt.first_success >= 0
    assert len(x) >= 200
    assert 0.05 < float(theirs.float().mean()) < 0.95, "the comparison must have something to tell apart"
    assert int(ours.sum()) >= int(theirs.sum()) - 0.02 * len(x)
