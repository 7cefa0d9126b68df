"""Decision-based attack: hard outputs, starts, closed forms, and strength against foolbox."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from torch import Tensor

from maskaudit.attacks.decision import Method, decision_based, nearest_of_other_classes
from maskaudit.attacks.decision.boundary_search import Starts
from maskaudit.errors import UsageError
from maskaudit.target import Target
from maskaudit.threat import Norm, ThreatModel
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
    saturated,
    survivors,
)


@pytest.mark.heavy
@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_hard_labels_hide_nothing(subjects: Subjects, threat: ThreatModel) -> None:
    model = one_hot(subjects.standard)
    x, y = subjects.x[:150], subjects.y[:150]
    attempt = decision_based(Target(model), x, y, threat=threat, rng=point_rng(150), pool=subjects.pool)
    assert survivors(model, attempt.examples, x, y, threat).float().mean() <= 0.06


def test_only_decisions_count(subjects: Subjects) -> None:
    """Logits, saturated probabilities and one-hot vectors lead to the same search."""
    x, y = subjects.x[:60], subjects.y[:60]
    successes = []
    for model in (subjects.standard, one_hot(subjects.standard)):
        attempt = decision_based(Target(model), x, y, threat=LINF, rng=point_rng(60), pool=subjects.pool, queries=200)
        successes.append(attempt.first_success)
    assert torch.equal(successes[0], successes[1])


@pytest.mark.heavy
@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_noise_starts_stand_in_for_a_pool(subjects: Subjects, threat: ThreatModel) -> None:
    model = saturated(subjects.standard)
    x, y = subjects.x[:60], subjects.y[:60]
    attempt = decision_based(Target(model), x, y, threat=threat, rng=point_rng(60))
    assert survivors(model, attempt.examples, x, y, threat).float().mean() <= 0.25


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_not_weaker_than_foolbox(subjects: Subjects, threat: ThreatModel) -> None:
    """The reference authors' HopSkipJump as foolbox implements it, from the nearest start, at equal queries."""
    foolbox = pytest.importorskip("foolbox")
    x, y = subjects.x[:80], subjects.y[:80]
    starts = nearest_of_other_classes(Target(subjects.robust), x, y, subjects.pool, 1)
    counted = Target(subjects.robust)
    model = foolbox.PyTorchModel(_Counting(subjects.robust, counted).eval(), bounds=(0, 1))
    reference = foolbox.attacks.HopSkipJumpAttack(
        steps=6, initial_gradient_eval_steps=30, constraint="l2" if threat.norm == "L2" else "linf"
    )
    state = torch.get_rng_state()
    logging.disable(logging.WARNING)
    try:
        found = reference.run(
            model, x, foolbox.criteria.Misclassification(y), starting_points=starts.pool[starts.member[:, 0]]
        )
    finally:
        logging.disable(logging.NOTSET)
        torch.set_rng_state(state)
    theirs = threat.distance(found, x) > threat.eps
    attempt = decision_based(
        Target(subjects.robust),
        x,
        y,
        threat=threat,
        rng=point_rng(80),
        pool=subjects.pool,
        queries=counted.ledger.forwards // 80,
    )
    ours = survivors(subjects.robust, attempt.examples, x, y, threat)
    assert ours.float().mean() <= theirs.float().mean() + 0.02


@pytest.mark.parametrize(("norm", "method"), [("Linf", "rays"), ("Linf", "hopskipjump"), ("L2", "hopskipjump")])
def test_halfspace_within_a_fifth_of_its_distance(norm: Norm, method: Method) -> None:
    """Distance of x to {w·x = c} is (c − w·x)/‖w‖_dual; the search must get inside 1.2 times that."""
    torch.manual_seed(0)
    weight = torch.rand(20) + 0.5
    dual = float(weight.sum() if norm == "Linf" else weight.norm())
    x = 0.4 + 0.05 * torch.rand(25, 20)
    y = torch.zeros(25, dtype=torch.int64)
    boundary = float((x @ weight).max()) + 0.1 * dual

    def model(x: Tensor) -> Tensor:
        side = (x @ weight > boundary).float()
        return torch.stack([1 - side, side], 1)

    for i in range(0, 25, 5):
        threat = ThreatModel(norm, 1.2 * (boundary - float(x[i] @ weight)) / dual)
        attempt = decision_based(
            Target(model), x[i : i + 1], y[:1], threat=threat, rng=point_rng(1), method=method, queries=2000
        )
        assert not bool(survivors(model, attempt.examples, x[i : i + 1], y[:1], threat)[0])  # type: ignore[arg-type]


def test_nearest_of_other_classes() -> None:
    def model(x: Tensor) -> Tensor:
        return -torch.stack([(x[:, 0] - centre).abs() for centre in (0.1, 0.5, 0.9)], 1)

    pool = torch.tensor([[0.12], [0.45], [0.55], [0.8], [0.95]])
    x, y = torch.tensor([[0.1], [0.6], [0.9]]), torch.tensor([0, 1, 2])
    starts = nearest_of_other_classes(Target(model), x, y, pool, 2)
    assert starts.member.tolist() == [[1, 3], [3, 0], [2, 0]]
    starts = nearest_of_other_classes(Target(model), x, y, pool[:1], 5)
    assert starts.member[1:].eq(0).all()
    assert nearest_of_other_classes(Target(model), x, y, None, 2).member.shape == (3, 0)
    assert isinstance(starts, Starts)


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_a_point_keeps_its_fate(subjects: Subjects, threat: ThreatModel) -> None:
    attack = functools.partial(decision_based, pool=subjects.pool, queries=150)
    assert_same_fate(attack, subjects.standard, subjects.x[:50], subjects.y[:50], threat)


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_vectors_and_two_classes(subjects: Subjects, threat: ThreatModel) -> None:
    model = one_hot(binary(flattened(subjects.standard)))
    x, y = correct_points(model, subjects.x.flatten(1), (subjects.y >= 5).long(), 40)
    attempt = decision_based(
        Target(model), x, y, threat=threat, rng=point_rng(40), pool=subjects.pool.flatten(1), queries=600
    )
    assert survivors(model, attempt.examples, x, y, threat).float().mean() <= 0.35


def test_bookkeeping(subjects: Subjects) -> None:
    x, y = subjects.x[:50], subjects.y[:50]
    target = Target(subjects.robust)
    attempt = decision_based(target, x, y, threat=LINF, rng=point_rng(50), queries=100, pool=subjects.pool[:30])
    broken = ~survivors(subjects.robust, attempt.examples, x, y, LINF)
    assert torch.equal(attempt.first_success > 0, broken)
    assert torch.equal(attempt.queries[broken], attempt.first_success[broken])
    assert (attempt.queries[~broken] == 100).all()
    assert target.ledger.forwards == int(attempt.queries.sum()) + 30


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda t: t.norm)
def test_points_of_a_random_model_leave_beyond_doubt_only(subjects: Subjects, threat: ThreatModel) -> None:
    target = Target(Noisy(subjects.standard, 0.5), draws=2)
    with target:
        attempt = decision_based(
            target, subjects.x[:6], subjects.y[:6], threat=threat, rng=point_rng(6), queries=60, pool=subjects.pool[:50]
        )
    assert_left_beyond_doubt(target, attempt, subjects.y, 60)
    assert threat.admissible(attempt.examples, subjects.x[:6]).all()


def test_constant_model_ends_quietly() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    x, y = torch.rand(3, 5), torch.zeros(3, dtype=torch.int64)
    attempt = decision_based(Target(model), x, y, threat=LINF, rng=point_rng(3), queries=20, pool=x)
    assert (attempt.first_success == -1).all()
    assert (attempt.queries == 20).all()


def test_unknown_method_is_refused(subjects: Subjects) -> None:
    with pytest.raises(UsageError, match="rays or hopskipjump"):
        decision_based(
            Target(subjects.standard),
            subjects.x[:1],
            subjects.y[:1],
            threat=LINF,
            rng=point_rng(1),
            method="boundary",  # type: ignore[arg-type]
        )


class _Counting(torch.nn.Module):
    """Counts the inputs that another package asks about."""

    def __init__(self, base: torch.nn.Module, counted: Target) -> None:
        super().__init__()
        self.base = base
        self.ledger = counted.ledger

    def forward(self, x: Tensor) -> Tensor:
        self.ledger.forwards += len(x)
        z: Tensor = self.base(x)
        return z
