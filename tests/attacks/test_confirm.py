"""When points of a random model leave: after nearly all of many fresh draws, and not before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.confirm import SHARE, confirmation, look_after
from maskaudit.attacks.interface import Attempt
from maskaudit.attacks.noise import random_noise
from maskaudit.attacks.pgd import pgd
from maskaudit.repairs.sequence import Relay
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from maskaudit.verdict.limits import MAJORITY_DRAWS
from tests.attacks.subjects import LINF, Noisy, Subjects, assert_left_beyond_doubt, point_rng


class Wavering:
    """Two classes; class 1, the wrong one, wins with the chance that the first coordinate says."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x: Tensor) -> Tensor:
        wrong = torch.rand(len(x), generator=self.generator) < x[:, 0]
        return torch.stack([1 - wrong.float(), wrong.float()], dim=1) + 0 * x.sum(dim=1, keepdim=True)


def wavering(chances: list[float]) -> tuple[Target, Tensor, Tensor]:
    x = torch.tensor(chances)[:, None].repeat(1, 3)
    return Target(Wavering(), draws=8), x, torch.zeros(len(x), dtype=torch.int64)


@pytest.mark.parametrize(
    ("limit", "after"), [(1, []), (2, []), (3, [2]), (41, [2, 4, 8, 16, 32]), (64, [2, 4, 8, 16, 32])]
)
def test_points_are_looked_at_after_powers_of_two(limit: int, after: list[int]) -> None:
    marks = look_after(limit)
    assert len(marks) == limit + 1
    assert marks.nonzero()[0].tolist() == after


def test_only_random_models_are_asked_again() -> None:
    _, x, y = wavering([0.5])
    assert confirmation(Target(Wavering()), x, y) is None
    assert confirmation(Target(Wavering(), reject_class=1), x, y) is None
    assert confirmation(Target(Wavering(), draws=2), x, y) is not None


def test_a_candidate_must_win_nearly_all_draws() -> None:
    target, x, y = wavering([0.0, 0.6, 0.75, 1.0] * 50)
    confirm = confirmation(target, x, y)
    assert confirm is not None
    sure = confirm(x, torch.arange(len(x))).view(50, 4).double().mean(dim=0)
    assert sure[0] == 0
    assert sure[1] <= 0.02
    assert sure[2] <= 0.15
    assert sure[3] == 1
    assert SHARE * MAJORITY_DRAWS > 0.65 * 31, "stricter than what an audit counts as broken"


def test_sure_points_leave_early_and_doubtful_ones_stay() -> None:
    target, x, y = wavering([0.0, 0.6, 1.0])
    still = ThreatModel("Linf", 1e-6)
    attempt = random_noise(target, x, y, threat=still, rng=point_rng(3), draws=50)
    assert attempt.queries.tolist() == [50, 50, 2]
    assert attempt.first_success[0] == -1
    assert attempt.first_success[2] == 1


def test_restarts_go_on_with_what_is_not_sure() -> None:
    target, x, y = wavering([0.6, 1.0])
    attempt = apgd(target, x, y, threat=ThreatModel("Linf", 1e-6), rng=point_rng(2), steps=9, restarts=3)
    assert attempt.queries.tolist() == [30, 2]


def test_a_relay_goes_on_with_what_is_not_sure() -> None:
    target, x, y = wavering([0.0, 0.7, 1.0])
    relay = Relay(target, x, y)
    relay.book(Attempt(x, torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)))
    assert relay.unbroken.tolist() == [0, 1]


def test_a_noisy_network_is_attacked_for_less_and_no_weaker(
    subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = subjects.x[:60], subjects.y[:60]
    left, passes = [], []
    for looks in (True, False):
        target = Target(Noisy(subjects.standard, 0.5), draws=8)
        if not looks:
            monkeypatch.setattr("maskaudit.attacks.resident.confirmation", lambda *points: None)
        with target:
            attempt = pgd(target, x, y, threat=LINF, rng=point_rng(60), steps=20)
            passes.append(target.ledger.forwards + target.ledger.backwards)
            wrong = [target.margin(target.raw(attempt.examples), y) > 0 for _ in range(31)]
        assert_left_beyond_doubt(target, attempt, y, 21)
        left.append(int((torch.stack(wrong).sum(dim=0) <= 20).sum()))
    assert left[0] <= left[1] + 2
    assert passes[0] < 0.6 * passes[1]
