"""Fresh re-scoring: what counts as a broken point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maskaudit.target.rescore import PROOF, Proof, clean_correct, rescore
from maskaudit.threat import ThreatModel
from maskaudit.verdict.limits import MAJORITY_DRAWS

THREAT = ThreatModel("Linf", 0.1)
N = 40
X = torch.full((N, 2), 0.5)
Y = torch.zeros(N, dtype=torch.int64)
BROKEN = X + torch.tensor([0.1, 0.0])


def above_half(x: Tensor) -> Tensor:
    """Class 1 exactly where the first coordinate exceeds one half; a tie at one half."""
    return torch.stack([torch.zeros(len(x)), x[:, 0] - 0.5], 1)


@pytest.mark.parametrize(
    ("example", "admissible", "broken"),
    [
        ([0.55, 0.5], True, True),
        ([0.6, 0.6], True, True),
        ([0.45, 0.5], True, False),
        ([0.5, 0.5], True, False),  # a tie proves nothing
        ([0.61, 0.5], False, False),
        ([float("nan"), 0.5], False, False),
        ([float("inf"), 0.5], False, False),
    ],
)
def test_one_example(example: list[float], admissible: bool, broken: bool) -> None:
    score = rescore(above_half, torch.tensor([example]), X[:1], Y[:1], threat=THREAT)
    assert (score.admissible.tolist(), score.broken.tolist()) == ([admissible], [broken])


def test_outside_the_bounds_although_inside_the_ball() -> None:
    x = torch.tensor([[0.98, 0.5]])
    score = rescore(above_half, torch.tensor([[1.05, 0.5]]), x, Y[:1], threat=THREAT)
    assert not score.admissible.any()


def test_inadmissible_examples_are_never_shown_to_the_model() -> None:
    def strict(x: Tensor) -> Tensor:
        assert bool(torch.isfinite(x).all())
        assert bool(((x - 0.5).abs() <= 0.1 + 1e-6).all())
        return above_half(x)

    examples = BROKEN.clone()
    examples[::3] = torch.tensor([torch.nan, 7.0])
    score = rescore(strict, examples, X, Y, threat=THREAT)
    assert torch.equal(score.broken, torch.arange(N) % 3 != 0)
    assert torch.equal(score.broken, score.admissible)
    nothing = rescore(strict, torch.full((3, 2), torch.nan), X[:3], Y[:3], threat=THREAT)
    assert not nothing.broken.any()


def test_rounding_outside_the_bounds_is_clipped_before_the_model_sees_it() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return above_half(x)

    x = torch.tensor([[1.0, 0.0]])
    assert rescore(model, torch.tensor([[1 + 2**-23, -3e-8]]), x, Y[:1], threat=THREAT).broken.all()
    assert torch.equal(seen[0], x)


def test_an_answer_that_depends_on_the_batch_proves_nothing() -> None:
    def by_batch(x: Tensor) -> Tensor:
        return above_half(x) if len(x) > 1 else above_half(1 - x)

    assert not rescore(by_batch, BROKEN, X, Y, threat=THREAT).broken.any()
    assert not rescore(by_batch, 1 - BROKEN, X, Y, threat=THREAT).broken.any()
    assert rescore(above_half, BROKEN, X, Y, threat=THREAT).broken.all()


def flip_with(probability: float) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def model(x: Tensor) -> Tensor:
        wrong = torch.rand(len(x), generator=generator) < probability
        return torch.stack([torch.zeros(len(x)), wrong.float() - 0.5], 1)

    return model


@pytest.mark.parametrize(("probability", "least", "most"), [(0.1, 0.0, 0.0), (0.5, 0.3, 0.7), (0.9, 1.0, 1.0)])
def test_a_random_model_is_judged_by_the_majority(probability: float, least: float, most: float) -> None:
    model = flip_with(probability)
    share = float(
        rescore(model, BROKEN.repeat(5, 1), X.repeat(5, 1), Y.repeat(5), threat=THREAT, random=True)
        .broken.float()
        .mean()
    )
    assert least <= share <= most
    correct = float(clean_correct(model, X.repeat(5, 1), Y.repeat(5), random=True).float().mean())
    assert 1 - most <= correct <= 1 - least
    assert MAJORITY_DRAWS % 2 == 1


@pytest.mark.parametrize(("draws", "error", "wins"), [(31, 0.04, 21), (101, 0.001, 67), (5, 0.04, 5), (4, 0.01, 5)])
def test_the_proof_demands_as_many_wins_as_the_binomial_tail_says(draws: int, error: float, wins: int) -> None:
    proof = Proof(draws, error)
    assert proof.wins == wins
    chance = float(torch.distributions.Binomial(draws, torch.tensor(0.5)).log_prob(torch.tensor(float(draws))).exp())
    assert (wins <= draws) == (chance <= error)


@pytest.mark.parametrize(("probability", "least", "most"), [(0.5, 0.0, 0.02), (0.55, 0.0, 0.06), (0.85, 0.98, 1.0)])
def test_an_example_of_a_random_model_is_proven_by_a_test_on_fresh_draws(
    probability: float, least: float, most: float
) -> None:
    many = 10
    score = rescore(
        flip_with(probability), BROKEN.repeat(many, 1), X.repeat(many, 1), Y.repeat(many), threat=THREAT, random=True,
        proof=PROOF,
    )  # fmt: skip
    assert score.won is not None
    assert least <= float(score.broken.float().mean()) <= most
    assert bool((score.won[score.broken] >= PROOF.wins).all())
    assert "67 of 101 fresh draws" in PROOF.sentence


def test_a_refusal_neither_breaks_nor_is_correct() -> None:
    def refusing(x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x[:, 0] - 0.5, 10 * (x[:, 1] - 0.55)], 1)

    examples = torch.tensor([[0.6, 0.5], [0.6, 0.6], [0.5, 0.6]])
    score = rescore(refusing, examples, X[:3], Y[:3], threat=THREAT, reject_class=2)
    assert score.broken.tolist() == [True, False, False]
    assert clean_correct(refusing, torch.tensor([[0.4, 0.5], [0.4, 0.6]]), Y[:2], reject_class=2).tolist() == [
        True,
        False,
    ]
