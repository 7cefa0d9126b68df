"""The resident batch: every point lives through its own steps, whichever points share the batch with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskaudit.attacks import resident
from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.ball import Ball, finite
from maskaudit.attacks.decision import decision_based
from maskaudit.attacks.finite_differences import finite_differences
from maskaudit.attacks.interface import Attempt, BestCandidates
from maskaudit.attacks.noise import random_noise
from maskaudit.attacks.pgd import pgd
from maskaudit.attacks.resident import ResidentBatch, SlotState
from maskaudit.attacks.square import square
from maskaudit.attacks.transfer import transfer
from maskaudit.target import Target, accelerator
from maskaudit.threat import ThreatModel

from .test_pgd import THREATS, N, exact_linear, make_rng


@dataclass
class Walk(SlotState):
    """A counter per slot that must always equal 100·point + step."""

    place: Tensor


def walked(breaks_at: Tensor, *, batch_size: int, stop_early: bool = True, limit: int = 5) -> tuple[Attempt, list[int]]:
    """Attempt of a toy attack whose candidate is its place, and the sizes of the batches."""
    x = torch.zeros(len(breaks_at), 1)
    batch = ResidentBatch(
        BestCandidates(x), limit=limit, batch_size=batch_size, stop_early=stop_early,
        enter=lambda points: Walk(100.0 * points[:, None]),
    )  # fmt: skip
    sizes = []
    while len(batch):
        sizes.append(len(batch))
        assert torch.equal(batch.state.place.flatten(), (100 * batch.points + batch.number).float())
        assert batch.youngest == int(batch.number.min())
        marks = np.arange(limit + 1) == 2
        at_two = (batch.number == 2).nonzero().squeeze(1)
        assert batch.any_at(marks) == (len(at_two) > 0)
        assert torch.equal(torch.arange(len(batch))[batch.slots_at(marks)], at_two)
        assert torch.equal(batch.held, torch.where(batch.number == 0, -torch.inf, batch.number - 1.0))
        batch.offer(batch.state.place, batch.number.float())
        batch.state.place += 1
        batch.advance(batch.number + 1 >= breaks_at[batch.points])
    return batch.finish(), sizes


BREAKS_AT = torch.tensor([1, 9, 3, 5, 9, 2, 9])


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 26), (3, 11), (4, 10), (10, 5)])
def test_each_point_gets_its_steps_and_freed_slots_are_taken(batch_size: int, batches: int) -> None:
    attempt, sizes = walked(BREAKS_AT, batch_size=batch_size)
    assert attempt.first_success.tolist() == [1, -1, 3, 5, -1, 2, -1]
    assert attempt.queries.tolist() == [1, 5, 3, 5, 5, 2, 5]
    assert attempt.examples.flatten().tolist() == [0, 104, 202, 304, 404, 501, 604]
    assert sum(sizes) == 26, "a point must not be passed through the model once it is broken"
    assert max(sizes) <= batch_size
    assert len(sizes) == batches


def test_the_step_that_one_surrogate_is_asked_at_is_known_for_all_slots_at_once() -> None:
    batch = ResidentBatch(
        BestCandidates(torch.zeros(3, 1)), limit=2, batch_size=3, stop_early=True,
        enter=lambda points: Walk(100.0 * points[:, None]),
    )  # fmt: skip
    assert batch.slots_at(np.array([True, False, False])) == slice(None)
    assert len(torch.arange(3)[batch.slots_at(np.array([False, True, True]))]) == 0


def test_without_early_stop_only_the_first_success_is_noted() -> None:
    attempt, sizes = walked(BREAKS_AT, batch_size=3, stop_early=False)
    assert attempt.first_success.tolist() == [1, -1, 3, 5, -1, 2, -1]
    assert attempt.queries.tolist() == [5] * 7
    assert sum(sizes) == 35


@pytest.mark.parametrize("n_and_limit", [(0, 5), (4, 0)])
def test_nothing_to_do(n_and_limit: tuple[int, int]) -> None:
    n, limit = n_and_limit
    attempt, sizes = walked(torch.ones(n), batch_size=2, limit=limit)
    assert sizes == []
    assert attempt.queries.tolist() == [0] * n


ATTACKS: dict[str, Callable[..., Attempt]] = {
    "pgd": lambda *a, **k: pgd(*a, steps=12, **k),
    "apgd": lambda *a, **k: apgd(*a, steps=12, restarts=2, **k),
    "square": lambda *a, **k: square(*a, queries=90, **k),
    "noise": lambda *a, **k: random_noise(*a, draws=40, **k),
    "rays": lambda *a, **k: decision_based(*a, queries=150, method="rays", **k),
    "hopskipjump": lambda *a, **k: decision_based(*a, queries=150, method="hopskipjump", **k),
    "finite-differences": lambda *a, **k: finite_differences(*a, queries=200, coordinate_limit=5, **k),
    "transfer": lambda target, *a, **k: transfer(
        target, *a, surrogates=[crooked(target, seed) for seed in (0, 1)], queries=28, steps=7, **k
    ),
}  # fmt: skip


def crooked(target: Target, seed: int) -> Target:
    """A surrogate that agrees with the target's only roughly, bit by bit the same in any batch."""
    noise = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Target(
        lambda x: target.model(x) + 3 * (x.flatten(1).double()[:, :, None] * noise).sum(1), bounds=target.bounds
    )


def outcome(name: str, threat: ThreatModel) -> Attempt:
    """What an attack brings home from points of which some break, in three batches with refill."""
    model, _, x, y = exact_linear((3, 2, 2), 5)
    target = Target(model, bounds=threat.bounds, batch_size=N // 3)
    return ATTACKS[name](target, x, y, threat=threat, rng=make_rng())


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_looking_seldom_changes_nothing(name: str, threat: ThreatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator does: broken points are noticed only every few steps, and have changed nothing since."""
    often = outcome(name, threat)
    monkeypatch.setattr(accelerator, "asking_is_free", lambda _device: False)
    monkeypatch.setattr(resident, "LOOK_EVERY", 5)
    seldom = outcome(name, threat)
    assert 0 < int((often.first_success >= 0).sum()) < N
    for field in ("examples", "first_success", "queries"):
        assert torch.equal(getattr(often, field), getattr(seldom, field)), field


@pytest.mark.parametrize("attack", [pgd, apgd])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_given_starts_are_where_the_attack_begins(attack: Any, threat: ThreatModel) -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return torch.stack([10 - 0 * x.sum(1), x.sum(1) - 100], 1)

    low, high = threat.bounds
    x = torch.full((3, 4), (low + high) / 2)
    starts = x + torch.tensor([[0.01], [-0.02], [99.0]])
    attack(
        Target(model, bounds=threat.bounds), x, torch.zeros(3, dtype=torch.int64), threat=threat, rng=make_rng(3),
        steps=2, starts=starts,
    )  # fmt: skip
    assert torch.allclose(seen[1], threat.project(starts, x), atol=1e-6)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42, 1e30, 0.0])
def test_the_ball_steps_and_projects_like_the_threat_model(threat: ThreatModel, scale: float) -> None:
    torch.manual_seed(0)
    low, high = threat.bounds
    clean = low + (high - low) * torch.rand(20, 3, 2, 2)
    at = threat.project(clean + threat.eps * torch.randn_like(clean), clean)
    gradient = torch.randn_like(clean)
    gradient[::2] *= scale
    kept = gradient.clone()
    size = threat.eps * torch.rand(20)
    expected = threat.project(at + size.view(-1, 1, 1, 1) * threat.step_direction(gradient), clean)
    out = torch.empty_like(clean)
    Ball.around(clean, threat).step(at, gradient, size, out=out)
    assert torch.allclose(out, expected, atol=1e-5 * max(1.0, abs(low), abs(high)))
    assert bool(threat.admissible(out, clean).all())
    assert torch.equal(gradient, kept), "the gradient may belong to the model"


def test_values_that_are_not_finite_count_as_zero() -> None:
    gradient = torch.tensor([[1.0, torch.nan], [torch.inf, -2.0]])
    assert finite(gradient).tolist() == [[1.0, 0.0], [0.0, -2.0]]
    assert torch.isnan(gradient).any(), "the gradient may belong to the model"
