"""Surrogates and transfer: hard outputs do not protect, nothing leaks, everything is counted."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from maskaudit.attacks.surrogate import Surrogate, train_surrogate
from maskaudit.attacks.transfer import transfer
from maskaudit.errors import UsageError
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from tests.attacks.subjects import (
    L2,
    LINF,
    Noisy,
    Subjects,
    assert_left_beyond_doubt,
    assert_same_fate,
    flattened,
    one_hot,
    point_rng,
    saturated,
    survivors,
)


@pytest.mark.heavy
@pytest.mark.parametrize(("mask", "threat"), [(one_hot, L2), (saturated, LINF)], ids=["one-hot", "softmax(50 z)"])
def test_hard_outputs_do_not_protect(
    subjects: Subjects, mask: Callable[[nn.Module], nn.Module], threat: ThreatModel
) -> None:
    model = mask(subjects.standard)
    x, y = subjects.x[:80], subjects.y[:80]
    surrogate = train_surrogate(Target(model), subjects.pool, threat=threat, num_classes=10, seed=1)
    attempt = transfer(Target(model), x, y, threat=threat, rng=point_rng(80), surrogates=[Target(surrogate)])
    assert survivors(model, attempt.examples, x, y, threat).float().mean() <= 0.05


@pytest.mark.heavy
def test_a_robust_model_stays_mostly_robust(subjects: Subjects) -> None:
    x, y = subjects.x[:200], subjects.y[:200]
    surrogate = train_surrogate(Target(subjects.robust), subjects.pool, threat=LINF, num_classes=10)
    attempt = transfer(Target(subjects.robust), x, y, threat=LINF, rng=point_rng(200), surrogates=[Target(surrogate)])
    assert 0.5 < survivors(subjects.robust, attempt.examples, x, y, LINF).float().mean() <= 0.78


def test_own_model_as_surrogate_is_a_white_box_attack(subjects: Subjects) -> None:
    x, y = subjects.x[:80], subjects.y[:80]
    attempt = transfer(
        Target(one_hot(subjects.standard)), x, y, threat=LINF, rng=point_rng(80), surrogates=[Target(subjects.standard)]
    )
    assert survivors(subjects.standard, attempt.examples, x, y, LINF).float().mean() <= 0.02


def test_several_surrogates_take_turns(subjects: Subjects) -> None:
    x, y = subjects.x[:40], subjects.y[:40]
    useless, useful = Target(Surrogate((1, 8, 8), 10, (0.0, 1.0)).eval()), Target(subjects.standard)
    target = Target(subjects.standard)
    attempt = transfer(target, x, y, threat=LINF, rng=point_rng(40), surrogates=[useless, useful])
    assert survivors(subjects.standard, attempt.examples, x, y, LINF).float().mean() <= 0.05
    assert useless.ledger.backwards > 0
    assert useful.ledger.backwards > 0
    assert target.ledger.forwards == int(attempt.queries.sum())
    assert target.ledger.backwards == 0


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_a_point_keeps_its_fate(subjects: Subjects, threat: ThreatModel) -> None:
    attack = functools.partial(transfer, surrogates=[Target(subjects.standard)], queries=24, steps=8)
    assert_same_fate(attack, subjects.robust, subjects.x[:60], subjects.y[:60], threat)


def test_points_of_a_random_model_leave_beyond_doubt_only(subjects: Subjects) -> None:
    target = Target(Noisy(subjects.standard, 0.5), draws=2)
    with target:
        attempt = transfer(
            target,
            subjects.x[:6],
            subjects.y[:6],
            threat=LINF,
            rng=point_rng(6),
            surrogates=[Target(subjects.standard)],
            queries=10,
            steps=5,
        )
    assert_left_beyond_doubt(target, attempt, subjects.y, 10)


def test_without_surrogates_it_is_refused(subjects: Subjects) -> None:
    with pytest.raises(UsageError, match="at least one surrogate"):
        transfer(Target(subjects.standard), subjects.x, subjects.y, threat=LINF, rng=point_rng(1), surrogates=[])


@pytest.mark.heavy
def test_training_is_deterministic_counted_and_leaves_the_random_state(subjects: Subjects) -> None:
    state = torch.get_rng_state()
    models, spent = [], []
    for _ in range(2):
        target = Target(subjects.standard)
        torch.rand(3)  # another global state each time
        before = torch.get_rng_state()
        models.append(train_surrogate(target, subjects.pool[:500], threat=LINF, num_classes=10, seed=5))
        assert torch.equal(before, torch.get_rng_state())
        spent.append(target.ledger.forwards)
    torch.set_rng_state(state)
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)
    assert spent == [5 * 500] * 2  # pool, noise, mixtures, two rounds of adversarial examples
    assert not any(parameter.requires_grad for parameter in models[0].parameters())
    assert not models[0].training


def test_surrogate_agrees_with_the_target_on_new_points(subjects: Subjects) -> None:
    model = flattened(subjects.standard)
    surrogate = train_surrogate(Target(model), subjects.pool.flatten(1), threat=LINF, num_classes=10)
    x = subjects.x.flatten(1)
    assert (surrogate(x).argmax(1) == model(x).argmax(1)).float().mean() > 0.95


@pytest.mark.parametrize("shape", [(5,), (1, 2, 9), (3, 4, 4), (1, 12, 5), (3, 70, 50)])
def test_every_input_shape_has_a_network(shape: tuple[int, ...]) -> None:
    x = torch.rand(6, *shape)
    assert Surrogate(shape, 2, (0.0, 1.0))(x).shape == (6, 2)


def test_a_small_pool_is_enough_to_run() -> None:
    pool = 4 * torch.rand(3, 5) - 2
    target = Target(lambda x: torch.stack([x[:, 0], -x[:, 0]], 1), bounds=(-2.0, 2.0))
    threat = ThreatModel("L2", 0.5, (-2.0, 2.0))
    surrogate = train_surrogate(target, pool, threat=threat, num_classes=2, rounds=1)
    assert surrogate(pool).shape == (3, 2)
