"""Auto-PGD: the schedule, closed forms, restarts, and strength against torchattacks."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import maskaudit.attacks.apgd as apgd_module
from maskaudit.attacks.apgd import apgd, checkpoints
from maskaudit.attacks.losses import Loss
from maskaudit.attacks.pgd import pgd
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

from .test_pgd import SHAPES, THREATS, N, best_margin, broken_by_torchattacks, exact_linear, make_rng

LOSSES: list[Loss] = ["ce", "margin", "dlr", "rescaled", "targeted-margin", "targeted-dlr"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),  # Croce & Hein 2020: p = .22, .41, .57, .70, .80, .87, .93, .99
        (50, [11, 21, 29, 35, 40, 44, 47, 50]),
        (10, [3, 5, 6, 7, 8, 9, 10]),
        (2, [1, 2]),
        (1, [1]),
    ],
)
def test_checkpoints(steps: int, expected: list[int]) -> None:
    assert checkpoints(steps) == expected


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_linear_classes_are_solved_exactly(threat: ThreatModel, shape: tuple[int, ...], loss: Loss) -> None:
    model, weight, x, y = exact_linear(shape, 2)
    target = Target(model, bounds=threat.bounds)
    attempt = apgd(target, x, y, threat=threat, rng=make_rng(), loss=loss, steps=25)
    best = best_margin(weight, x, y, threat).float()
    unbroken = attempt.first_success < 0
    assert bool(threat.admissible(attempt.examples, x).all())
    assert torch.equal(unbroken, best <= 0)
    reached = target.margin(target.scores(attempt.examples), y)
    assert torch.allclose(reached[unbroken], best[unbroken], atol=2e-3)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_targets_find_every_class_that_can_be_reached(threat: ThreatModel) -> None:
    """A linear model is broken exactly where some class is reachable; the targeted loss tries each in turn."""
    model, weight, x, y = exact_linear((12,), 5)
    reachable = best_margin(weight, x, y, threat) > 0
    assert 0 < int(reachable.sum()) < N
    target = Target(model, bounds=threat.bounds)
    for loss in ("targeted-margin", "targeted-dlr"):
        attempt = apgd(target, x, y, threat=threat, rng=make_rng(), loss=loss, steps=25, targets=4)  # type: ignore[arg-type]
        assert torch.equal(attempt.first_success >= 0, reachable)


@pytest.mark.parametrize(("targets", "broken"), [(1, False), (2, True)])
def test_the_runner_up_may_be_out_of_reach_and_the_next_class_not(targets: int, broken: bool) -> None:
    def model(x: Tensor) -> Tensor:
        reachable = 10 * (x.mean(1) - 0.5) - 0.8
        return torch.stack([0 * reachable, 0 * reachable - 0.1, reachable], 1)

    x, y = torch.full((9, 8), 0.5), torch.zeros(9, dtype=torch.int64)
    attempt = apgd(
        Target(model),
        x,
        y,
        threat=ThreatModel("Linf", 0.1),
        rng=make_rng(9),
        loss="targeted-margin",
        steps=20,
        targets=targets,
    )
    assert (attempt.first_success >= 0).tolist() == [broken] * 9


@pytest.mark.parametrize(("settings", "runs"), [({"restarts": 3}, 3), ({"restarts": 2, "targets": 5}, 2)])
def test_an_unbroken_point_gets_every_run_and_a_broken_one_no_more(settings: dict[str, int], runs: int) -> None:
    model, _, x, y = exact_linear((12,), 5)
    threat = THREATS[0]
    target = Target(model, bounds=threat.bounds)
    attempt = apgd(target, x, y, threat=threat, rng=make_rng(), loss="margin", steps=8, **settings)
    unbroken = attempt.first_success < 0
    assert 0 < int(unbroken.sum()) < N
    assert bool((attempt.queries[unbroken] == 9 * runs).all())
    assert torch.equal(attempt.queries[~unbroken], attempt.first_success[~unbroken])


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("loss", ["ce", "targeted-margin"])
def test_runs_together_come_out_like_runs_in_turn(
    threat: ThreatModel, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, x, y = exact_linear((12,), 5)
    attempts, spent = [], []
    for together in (1, 64):
        monkeypatch.setattr(apgd_module, "TOGETHER", together)
        target = Target(model, bounds=threat.bounds)
        attempts.append(
            apgd(target, x, y, threat=threat, rng=make_rng(), loss=loss, steps=8, restarts=3, targets=2)
        )  # fmt: skip
        spent.append(target.ledger.backwards)
    assert spent[0] == int(attempts[0].queries.sum()) < spent[1]  # in turn nothing is spent that does not count
    for name in ("examples", "first_success", "queries"):
        assert torch.equal(getattr(attempts[0], name), getattr(attempts[1], name)), name


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_points_beyond_reach_are_given_up_at_the_first_checkpoint(threat: ThreatModel) -> None:
    """The margin of two linear classes falls evenly: what is beyond reach is known in closed form."""
    model, weight, x, y = exact_linear((12,), 2)
    target = Target(model, bounds=threat.bounds)
    best = best_margin(weight, x, y, threat).float()
    share = best / target.margin(target.scores(x), y)
    limit = float(share[best < 0].median()) + 1e-3
    whole = apgd(target, x, y, threat=threat, rng=make_rng(), steps=50)
    spared = apgd(target, x, y, threat=threat, rng=make_rng(), steps=50, reach=limit)
    beyond = (best < 0) & (share > limit)
    assert 0 < int(beyond.sum()) < int((best < 0).sum())
    assert torch.equal(spared.queries[beyond], torch.full_like(spared.queries[beyond], checkpoints(50)[0] + 1))
    for name in ("examples", "first_success", "queries"):
        assert torch.equal(getattr(spared, name)[~beyond], getattr(whole, name)[~beyond]), name
    assert bool((spared.first_success[beyond] < 0).all())


def test_with_a_reject_class_every_point_gets_the_whole_budget() -> None:
    model, _, x, y = exact_linear((12,), 5)
    y = y % 4
    target = Target(model, bounds=(-5.0, 5.0), reject_class=4)
    attempt = apgd(target, x, y, threat=THREATS[0], rng=make_rng(), steps=6, restarts=2)
    assert attempt.queries.tolist() == [14] * N
    assert bool((attempt.first_success <= 14).all())


def test_restarts_begin_elsewhere() -> None:
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return torch.stack([torch.ones(len(x)), torch.zeros(len(x))], 1) + 0 * x.sum(1, keepdim=True)

    x = torch.full((2, 3), 0.5)
    apgd(
        Target(watched), x, torch.tensor([0, 0]), threat=ThreatModel("Linf", 0.1), rng=make_rng(2), steps=2, restarts=2
    )
    starts = seen[1].split(2)  # after the clean pass: two runs of three evaluations, together
    assert [len(batch) for batch in seen] == [2, 4, 4, 4]
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0][0], starts[0][1])


def test_a_step_size_too_large_for_the_valley_is_halved() -> None:
    """A narrow optimum: fixed steps of 2ε jump across it, Auto-PGD's halving settles in it."""
    target = Target(lambda x: torch.stack([torch.zeros(len(x)), -((x - 0.53).abs()).sum(1) - 1e-3], 1))
    x, y = torch.full((6, 2), 0.5), torch.zeros(6, dtype=torch.int64)
    threat = ThreatModel("Linf", 0.1)
    halved = apgd(target, x, y, threat=threat, rng=make_rng(6), loss="margin", steps=100)
    fixed = pgd(target, x, y, threat=threat, rng=make_rng(6), loss="margin", steps=100, step_size=0.2)
    assert float((halved.examples - 0.53).abs().max()) < 0.005
    assert float((fixed.examples - 0.53).abs().max()) > 0.01


def test_no_graph_is_kept() -> None:
    kept: list[weakref.ref[Tensor]] = []

    def model(x: Tensor) -> Tensor:
        hidden = (x**2).clone()
        kept.append(weakref.ref(hidden))
        return hidden[:, :3]

    attempt = apgd(Target(model), torch.rand(5, 4), torch.full((5,), 2), threat=THREATS[1], rng=make_rng(5), steps=5)
    gc.collect()
    assert len(kept) > 1
    assert all(reference() is None for reference in kept)
    assert not attempt.examples.requires_grad


@pytest.mark.parametrize("threat", [ThreatModel("Linf", 0.2), ThreatModel("L2", 1.0)], ids=str)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_not_weaker_than_torchattacks(subjects: Any, threat: ThreatModel, loss: Loss) -> None:
    x, y = subjects.x, subjects.y
    theirs = broken_by_torchattacks(
        subjects.robust, x, y, threat, "APGD", norm=threat.norm, steps=25, loss=loss, n_restarts=2
    )
    attempt = apgd(Target(subjects.robust), x, y, threat=threat, rng=make_rng(len(x)), loss=loss, steps=25, restarts=2)
    ours = attempt.first_success >= 0
    assert len(x) >= 500
    assert 0.05 < float(theirs.float().mean()) < 0.95
    assert int(ours.sum()) >= int(theirs.sum()) - 0.02 * len(x)
