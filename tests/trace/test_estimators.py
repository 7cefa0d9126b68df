"""Straight-through estimators: distinguished from cuts that hide something, however they are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskaudit.auditing.inspection import inspection
from maskaudit.repairs.blame import traced
from maskaudit.target import Target
from tests.trace import masked_models as zoo

Points = tuple[Tensor, Tensor]


def steps(x: Tensor) -> Tensor:
    return (x * 2).round() / 2


def classic(x: Tensor) -> Tensor:
    return x + (steps(x) - x).detach()


def taken_away(x: Tensor) -> Tensor:
    return steps(x).detach() + x - x.detach()


def other_sign(x: Tensor) -> Tensor:
    return x - (x - steps(x)).detach()


def under_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = steps(x) - x
    return x + wanted


def compared(x: Tensor) -> Tensor:
    return x + ((x > 0.5).float() - x).detach()


def in_half_precision(x: Tensor) -> Tensor:
    half = x.to(torch.bfloat16)
    return (half + (steps(half) - half).detach()).float()


def functional(x: Tensor) -> Tensor:
    return zoo.RoundSTE.apply(x * 2) / 2


def scaled_by_the_data(x: Tensor) -> Tensor:
    scale = x.detach().abs().max() / 3
    return x + ((x / scale).round() * scale - x).detach()


ESTIMATORS = [classic, scaled_by_the_data, taken_away, other_sign, under_no_grad, compared, in_half_precision]


@pytest.mark.parametrize("front", ESTIMATORS)
def test_an_estimator_is_named_at_the_sum_and_nothing_is_blamed(front: object, net: nn.Module, points: Points) -> None:
    with Target(zoo.Front(net, zoo.Apply(front)).eval()) as target:  # type: ignore[arg-type]
        found = traced(target, *points, eps=0.1)
    assert [(place.op in ("add", "sub"), place.module) for place in found.estimators] == [(True, "front")]
    assert found.cuts
    assert not found.parallel
    assert found.healthy


def test_an_estimator_written_as_a_function_is_named_at_its_backward(net: nn.Module, points: Points) -> None:
    with Target(zoo.Front(net, zoo.Apply(functional)).eval()) as target:
        found = traced(target, *points, eps=0.1)
    assert [place.op for place in found.estimators] == ["RoundSTE"]
    assert found.healthy


def test_a_fake_quantiser_of_torch_is_an_estimator(net: nn.Module, points: Points) -> None:
    def front(x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.5, 0, 0, 2)

    with Target(zoo.Front(net, zoo.Apply(front)).eval()) as target:
        found = traced(target, *points, eps=0.1)
    assert [place.op for place in found.estimators] == ["fake_quantize_per_tensor_affine"]
    assert found.healthy


def turned(x: Tensor) -> Tensor:
    return (steps(x) + x).detach() - x


def of_another_place(x: Tensor) -> Tensor:
    other = x.flip(2, 3)
    return steps(x).detach() + (other - other.detach())


def turned_before(x: Tensor) -> Tensor:
    other = -x
    return other + (steps(x) - other).detach()


@pytest.mark.parametrize("front", [turned, of_another_place, turned_before])
def test_a_staircase_with_a_false_trend_is_a_lying_backward(front: object, net: nn.Module, points: Points) -> None:
    with Target(zoo.Front(net, zoo.Apply(front)).eval()) as target:  # type: ignore[arg-type]
        found = traced(target, *points, eps=0.1)
    assert [(c.mechanism, c.location.module) for c in found.culprits] == [("lying-backward", "front")]
    assert not found.estimators


def test_of_several_runs_of_a_line_each_is_looked_at(net: nn.Module, points: Points) -> None:
    def front(x: Tensor) -> Tensor:
        for sign in (1.0, -1.0):
            x = sign * x + (steps(x) - sign * x).detach()
        return x

    with Target(zoo.Front(net, zoo.Apply(front)).eval()) as target:
        found = traced(target, *points, eps=0.1)
    assert [culprit.mechanism for culprit in found.culprits] == ["lying-backward"]


def test_a_gate_of_which_little_is_known_is_neither_listed_nor_accused(net: nn.Module, points: Points) -> None:
    def front(x: Tensor) -> Tensor:
        scores = 0.2 * x + 0.8 * x.flip(2, 3)
        return scores + ((x > 0.9).float() - scores).detach()

    with Target(zoo.Front(net, zoo.Apply(front)).eval()) as target:
        found = traced(target, *points, eps=0.1)
    assert not found.estimators
    assert "lying-backward" not in {culprit.mechanism for culprit in found.culprits}


def chosen(x: Tensor) -> Tensor:
    levels = torch.tensor([0.0, 0.5, 1.0])
    nearest = (x.unsqueeze(-1) - levels).abs().argmin(dim=-1)
    return x + (levels[nearest] - x).detach()


def test_a_codebook_is_a_staircase(net: nn.Module, points: Points) -> None:
    with Target(zoo.Front(net, zoo.Apply(chosen)).eval()) as target:
        found = traced(target, *points, eps=0.1)
    assert [place.module for place in found.estimators] == ["front"]


class ClippedSign(torch.autograd.Function):
    """The gradient of a window that most units miss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x - 0.5).sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * ((x - 0.47).abs() < 0.05)


def test_an_estimator_whose_window_is_missed_is_suspected(net: nn.Module, points: Points) -> None:
    with Target(zoo.Front(net, zoo.Apply(lambda x: ClippedSign.apply(x))).eval()) as target:
        found = traced(target, *points, eps=0.1)
    assert "ClippedSign" in {culprit.location.op for culprit in found.culprits}


def smooth(x: Tensor) -> Tensor:
    return x + (x.sin() - x).detach()


def beside_the_steps(x: Tensor) -> Tensor:
    return x + (steps(x) + 0.1 * x.square() - x).detach()


def scaled(x: Tensor) -> Tensor:
    return x * (steps(x) - x).detach()


def used_twice(x: Tensor) -> Tensor:
    wanted = (steps(x) - x).detach()
    return x + wanted + 0.1 * (x + wanted.square())


def through_numpy(x: Tensor) -> Tensor:
    return x + (torch.from_numpy(x.detach().numpy().round()) - x).detach()


def built_from_numbers(x: Tensor) -> Tensor:
    return x + (torch.tensor(x.detach().tolist()) * 1.0 - x).detach()


def with_a_mask(x: Tensor) -> Tensor:
    return (x > 0.5).detach() + x


NO_ESTIMATORS = [smooth, beside_the_steps, scaled, used_twice, through_numpy, built_from_numbers, with_a_mask]


@pytest.mark.parametrize("front", NO_ESTIMATORS)
def test_what_only_looks_like_one_is_not_named(front: object, net: nn.Module, points: Points) -> None:
    with Target(zoo.Front(net, zoo.Apply(front)).eval()) as target:  # type: ignore[arg-type]
        found = traced(target, *points, eps=0.1)
    assert not found.estimators


def test_the_inspection_says_whose_gradient_it_is(net: nn.Module, points: Points) -> None:
    with Target(zoo.Front(net, zoo.Apply(classic)).eval()) as target:
        document = inspection(traced(target, *points, eps=0.1))
    assert "front.add (test_estimators.py:" in document["sentence"]
    assert document["estimators"][0]["module"] == "front"
