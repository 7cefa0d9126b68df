"""The GREAT family's quantities against closed forms and central differences, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskaudit.train.masked_gradient import GREACE_TERMS, greace_term, masked_gradient, reverse_gradient

from .differences import central_difference

CLASSES = 4
FEATURES = 6


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture
def points(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(5, FEATURES, generator=generator, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])


@pytest.fixture
def smooth(generator: torch.Generator) -> nn.Module:
    """A network whose second derivatives do not vanish."""
    return _initialise(nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, CLASSES)), generator)


@pytest.fixture
def auxiliary(generator: torch.Generator) -> nn.Module:
    return _initialise(nn.Sequential(nn.Linear(FEATURES, 5), nn.LeakyReLU(), nn.Linear(5, CLASSES)), generator)


def _initialise(module: nn.Module, generator: torch.Generator) -> nn.Module:
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def test_masked_gradient_of_a_linear_model_is_the_scaled_row_of_its_matrix(points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    model = nn.Linear(FEATURES, CLASSES).double()
    logits, g = masked_gradient(model, x, y)
    p_y = logits.softmax(1)[torch.arange(len(y)), y]
    torch.testing.assert_close(g, (p_y - 1).unsqueeze(1) * model.weight[y])


def test_masked_gradient_keeps_only_the_true_class(smooth: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    logits, g = masked_gradient(smooth, x, y)
    for row in range(len(x)):
        point = x[row : row + 1].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(smooth(point)[0, y[row]], point)
        torch.testing.assert_close(g[row], (logits[row].softmax(0)[y[row]] - 1) * slope[0])
    full = x.clone().requires_grad_(True)
    (unmasked,) = torch.autograd.grad(F.cross_entropy(smooth(full), y, reduction="sum"), full)
    assert not torch.allclose(g, unmasked)


def test_greace_logit_gradient_is_equation_6(points: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    _, y = points
    beta, n = 0.7, len(y)
    logits = torch.randn(n, CLASSES, generator=generator, dtype=torch.float64).requires_grad_(True)
    h = torch.randn(n, CLASSES, generator=generator, dtype=torch.float64).requires_grad_(True)

    def loss() -> Tensor:
        return F.cross_entropy(logits, y) + beta * greace_term(logits, h, y)

    (gradient,) = torch.autograd.grad(loss(), logits)
    truth = F.one_hot(y, CLASSES).double()
    closed_form = (logits.softmax(1) - truth + beta * h.softmax(1) * (1 - truth)) / n
    torch.testing.assert_close(gradient, closed_form)
    torch.testing.assert_close(gradient, central_difference(loss, logits.detach()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", GREACE_TERMS)
def test_every_form_of_greace_has_the_gradient_of_differences(name: str, points: tuple[Tensor, Tensor]) -> None:
    _, y = points
    generator = torch.Generator().manual_seed(5)
    logits = (3 * torch.randn(len(y), CLASSES, generator=generator, dtype=torch.float64)).requires_grad_(True)
    h = torch.randn(len(y), CLASSES, generator=generator, dtype=torch.float64)

    def term() -> Tensor:
        return GREACE_TERMS[name](logits, h, y)

    (gradient,) = torch.autograd.grad(term(), logits)
    torch.testing.assert_close(gradient, central_difference(term, logits.detach()), rtol=1e-6, atol=1e-8)
    if name == "zero-sum":
        torch.testing.assert_close(gradient.sum(1), torch.zeros(len(y), dtype=torch.float64))


def test_only_the_bounded_form_is_bounded(points: tuple[Tensor, Tensor]) -> None:
    _, y = points
    far = torch.full((len(y), CLASSES), -1e6, dtype=torch.float64)
    h = torch.zeros_like(far)
    assert greace_term(far, h, y) < -1e5
    assert GREACE_TERMS["bounded"](far, h, y) >= 0
    far = far.scatter(1, y.unsqueeze(1), 0.0)
    assert GREACE_TERMS["zero-sum"](far, h, y) < -1e5
    assert float(GREACE_TERMS["bounded"](far, h, y)) == 0


def test_the_bounded_form_is_exact_where_a_probability_rounds_to_one() -> None:
    logits = torch.tensor([[0.0, 80.0, -5.0]])
    term = GREACE_TERMS["bounded"](logits, torch.tensor([[0.0, 30.0, 0.0]]), torch.tensor([0]))
    assert float(term) == pytest.approx(80 - math.log(1 + math.exp(-5)), rel=1e-5)


def test_greace_weights_are_constants(points: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    _, y = points
    logits = torch.randn(len(y), CLASSES, generator=generator, dtype=torch.float64).requires_grad_(True)
    h = torch.randn(len(y), CLASSES, generator=generator, dtype=torch.float64).requires_grad_(True)
    _, h_gradient = torch.autograd.grad(greace_term(logits, h, y), (logits, h), allow_unused=True)
    assert h_gradient is None


def test_great_term_has_exact_second_order_gradients(
    smooth: nn.Module, auxiliary: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    x, y = points

    def term() -> Tensor:
        with torch.enable_grad():
            return F.cross_entropy(auxiliary(masked_gradient(smooth, x, y)[1]), y)

    parameters = list(smooth.parameters())
    for gradient, parameter in zip(torch.autograd.grad(term(), parameters), parameters, strict=True):
        torch.testing.assert_close(gradient, central_difference(term, parameter.data), rtol=1e-5, atol=1e-8)


def test_reversal_flips_the_main_network_and_leaves_the_auxiliary(
    smooth: nn.Module, auxiliary: nn.Module, points: tuple[Tensor, Tensor]
) -> None:
    x, y = points
    alpha = 0.3
    g = masked_gradient(smooth, x, y)[1]
    both = [*smooth.parameters(), *auxiliary.parameters()]
    plain = torch.autograd.grad(F.cross_entropy(auxiliary(g), y), both, retain_graph=True)
    reversed_ = torch.autograd.grad(F.cross_entropy(auxiliary(reverse_gradient(g, alpha)), y), both)
    assert torch.equal(reverse_gradient(g, alpha), g)
    main = len(list(smooth.parameters()))
    for index, (one, other) in enumerate(zip(plain, reversed_, strict=True)):
        torch.testing.assert_close(other, -alpha * one if index < main else one)
    assert any(gradient.abs().max() > 1e-3 for gradient in plain[:main])
