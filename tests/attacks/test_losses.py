"""Losses against naive loops over the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maskaudit.attacks.losses import (
    RESCALED_GAP,
    Loss,
    build_objective,
    cross_entropy,
    dlr,
    label_term,
    margin,
    other_term,
    start_scale,
    targeted_dlr,
    targeted_margin,
    wrong_class,
)
from maskaudit.target import Target

N = 40


def scores_and_labels(k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    return 3 * torch.randn(N, k, generator=generator), torch.randint(k, (N,), generator=generator)


def naive_ce(z: list[float], y: int) -> float:
    return math.log(sum(math.exp(value) for value in z)) - z[y]


def naive_margin(z: list[float], y: int) -> float:
    return max(value for j, value in enumerate(z) if j != y) - z[y]


def naive_dlr(z: list[float], y: int) -> float:
    """Croce & Hein 2020, eq. 6."""
    order = sorted(z, reverse=True)
    return naive_margin(z, y) / (order[0] - order[2]) if len(z) > 2 else naive_margin(z, y)


def naive_targeted_dlr(z: list[float], y: int, t: int) -> float:
    """Croce & Hein 2020, eq. 7, with as many of the third and fourth logit as there are."""
    order = sorted(z, reverse=True)
    difference = z[t] - z[y]
    if len(z) == 2:
        return difference
    return difference / (order[0] - (sum(order[2:4]) / len(order[2:4])))


@pytest.mark.parametrize("k", [2, 3, 4, 10])
@pytest.mark.parametrize(
    ("loss", "naive"),
    [
        (cross_entropy, naive_ce),
        (margin, naive_margin),
        (dlr, naive_dlr),
        (label_term, lambda z, y: -z[y]),
        (other_term, lambda z, y: max(value for j, value in enumerate(z) if j != y)),
    ],
    ids=["ce", "margin", "dlr", "label-term", "other-term"],
)
def test_untargeted(
    loss: Callable[[Tensor, Tensor], Tensor], naive: Callable[[list[float], int], float], k: int
) -> None:
    scores, y = scores_and_labels(k)
    expected = torch.tensor([naive(z, label) for z, label in zip(scores.tolist(), y.tolist(), strict=True)])
    assert torch.allclose(loss(scores, y), expected, atol=1e-4)


@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_targeted(k: int) -> None:
    scores, y = scores_and_labels(k)
    target = (y + 1) % k
    triples = list(zip(scores.tolist(), y.tolist(), target.tolist(), strict=True))
    assert torch.allclose(targeted_margin(scores, y, target), torch.tensor([z[t] - z[c] for z, c, t in triples]))
    expected = torch.tensor([naive_targeted_dlr(z, c, t) for z, c, t in triples])
    assert torch.allclose(targeted_dlr(scores, y, target), expected, atol=1e-4)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "rescaled", "targeted-margin", "targeted-dlr"])
@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_every_loss_rises_towards_misclassification_and_has_a_finite_gradient(loss: Loss, k: int) -> None:
    scores, y = scores_and_labels(k)
    scores[torch.arange(N), y] = scores.amax(1) + 1.0  # right, as points under attack are
    objective = build_objective(loss, y, scores)
    leaf = scores.clone().requires_grad_(True)
    value = objective(leaf, torch.arange(N))
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert value.shape == (N,)
    assert value.dtype == torch.float32
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient[torch.arange(N), y] < 0).all())
    better = objective(scores - 0.5 * torch.nn.functional.one_hot(y, k), torch.arange(N))
    assert bool((better > value).all())


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "rescaled", "targeted-margin", "targeted-dlr"])
def test_an_objective_asked_about_some_rows_uses_their_labels(loss: Loss) -> None:
    scores, y = scores_and_labels(5)
    objective = build_objective(loss, y, scores, target_rank=1)
    rows = torch.tensor([31, 2, 17])
    assert torch.allclose(objective(scores[rows], rows), objective(scores, torch.arange(N))[rows])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e12])
def test_rescaled_logits_have_a_gradient_at_any_scale_and_the_same_ascent(scale: float) -> None:
    """Yu & Xu 2023: at ×1e6 plain cross-entropy has underflown to an exactly zero gradient."""
    scores, y = scores_and_labels(6)
    scores[torch.arange(N), y] = scores.amax(1) + 1.0
    gradients = []
    for factor in (1.0, scale):
        leaf = (scores * factor).requires_grad_(True)
        objective = build_objective("rescaled", y, leaf.detach())
        (gradient,) = torch.autograd.grad(objective(leaf, torch.arange(N)).sum(), leaf)
        gradients.append(gradient * factor)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-2, atol=1e-5)
    assert bool((gradients[1].abs().amax(1) > 0.05).all())
    if scale >= 1e6:
        leaf = (scores * scale).requires_grad_(True)
        (plain,) = torch.autograd.grad(cross_entropy(leaf, y).sum(), leaf)
        assert bool((plain == 0).all())


def test_rescaled_reaches_through_a_whole_model() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.rand(8, 5, generator=generator), torch.randn(5, 3, generator=generator)
    target = Target(lambda x: 1e6 * (x @ weight))
    y = target.scores(x).argmax(1)
    for loss, zero in (("ce", True), ("rescaled", False)):
        objective = build_objective(loss, y, target.scores(x))  # type: ignore[arg-type]
        assert bool((target.value_and_grad(x, objective).grad == 0).all()) is zero


def test_start_scale_brings_the_gap_to_its_place() -> None:
    scores, _ = scores_and_labels(7)
    top = (scores.double() * start_scale(scores)[:, None]).topk(2, dim=1).values
    assert torch.allclose(top[:, 0] - top[:, 1], torch.full((N,), RESCALED_GAP, dtype=torch.float64))
    assert bool(torch.isfinite(start_scale(torch.zeros(2, 3))).all())


@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_wrong_classes_come_in_order_of_score_and_wrap(k: int) -> None:
    scores, y = scores_and_labels(k)
    for rank in range(2 * k):
        chosen = wrong_class(scores, y, rank)
        for z, label, t in zip(scores.tolist(), y.tolist(), chosen.tolist(), strict=True):
            order = sorted((j for j in range(k) if j != label), key=lambda j: -z[j])
            assert t == order[rank % (k - 1)]


def test_a_refusal_is_never_a_target() -> None:
    scores, y = scores_and_labels(4)
    y = y % 3
    for rank in range(4):
        chosen = wrong_class(scores, y, rank, reject_class=3)
        assert bool((chosen != 3).all())
        assert bool((chosen != y).all())
    assert {tuple(wrong_class(scores, y, rank, 3).tolist()) for rank in (0, 2)} == {
        tuple(wrong_class(scores, y, 0, 3).tolist())
    }


@pytest.mark.parametrize("loss", [dlr, margin])
def test_ties_and_constant_scores_stay_finite(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    leaf = torch.zeros(3, 4, requires_grad=True)
    value = loss(leaf, torch.tensor([0, 1, 2]))
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert value.tolist() == [0.0, 0.0, 0.0]
    assert bool(torch.isfinite(gradient).all())
