"""Restricted curvature against quadratics whose Hessian is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit.attacks.losses import margin
from maskaudit.probes.curvature import curvature
from maskaudit.probes.lanczos import largest_eigenpair
from maskaudit.probes.run import run_probe
from maskaudit.threat import ThreatModel

from .toys import Linear, Quadratic, Through, context, get, points, relu_net


def symmetric(size: int, seed: int) -> Tensor:
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a + a.T


def restricted(a: Tensor, direction: Tensor) -> Tensor:
    """Eigenvalues of a on the complement of a direction, by an explicit basis."""
    basis = torch.linalg.svd(direction[None].double()).Vh[1:]
    return torch.linalg.eigvalsh(basis @ a.double() @ basis.T)


def unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True)


def test_lanczos_finds_the_restricted_eigenvalue_of_each_matrix() -> None:
    matrices = torch.stack([symmetric(9, seed) for seed in range(6)])
    generator = torch.Generator().manual_seed(9)
    avoid = unit(torch.randn(6, 9, generator=generator, dtype=torch.float64))
    start = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    value, vector = largest_eigenpair(lambda v: torch.einsum("bij,bj->bi", matrices, v), start, avoid, steps=9)
    expected = torch.stack([restricted(a, u)[-1] for a, u in zip(matrices, avoid, strict=True)])
    assert torch.allclose(value, expected, atol=1e-9)
    assert torch.allclose((vector * avoid).sum(dim=1), torch.zeros(6, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(torch.einsum("bi,bij,bj->b", vector, matrices, vector), expected, atol=1e-9)


@pytest.mark.parametrize("spectrum", [[0.0] * 6, [-3.0, -2.0, -1.0, -1.0, -5.0, -4.0], [2.0] * 6, [0, 0, 0, 0, 0, 7.0]])
def test_lanczos_survives_invariant_subspaces_and_negative_spectra(spectrum: list[float]) -> None:
    diagonal = torch.tensor(spectrum, dtype=torch.float64)
    start = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, vector = largest_eigenpair(lambda v: v * diagonal, start, torch.zeros(2, 6, dtype=torch.float64), steps=20)
    assert torch.allclose(value, diagonal.max().expand(2), atol=1e-9)
    assert torch.allclose(vector.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_lanczos_few_steps_come_close_on_a_decaying_spectrum() -> None:
    diagonal = 0.7 ** torch.arange(200, dtype=torch.float64)
    start = torch.randn(3, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, _ = largest_eigenpair(lambda v: v * diagonal, start, torch.zeros(3, 200, dtype=torch.float64), steps=12)
    assert torch.allclose(value, torch.ones(3, dtype=torch.float64), rtol=0.02)


def test_an_empty_complement_gives_zero() -> None:
    one = torch.ones(2, 1, dtype=torch.float64)
    value, vector = largest_eigenpair(lambda v: 5 * v, one, one, steps=3)
    assert value.tolist() == [0, 0]
    assert vector.tolist() == [[0], [0]]


@pytest.mark.parametrize("shape", [(7,), (1, 2, 4)])
def test_quadratic_model_has_its_known_restricted_hessian_and_gains(shape: tuple[int, ...]) -> None:
    size = int(torch.tensor(shape).prod())
    a = symmetric(size, 3).float()
    b = torch.randn(size, generator=torch.Generator().manual_seed(4))
    x = 0.4 + 0.2 * points(5, *shape)
    threat = ThreatModel("L2", 0.1)
    with context(Quadratic(a, b), x, torch.zeros(5, dtype=torch.int64), threat) as ctx:
        found = curvature(ctx, lambda scores, y: margin(scores, y), ctx.rng, slice(0, 5))
        assert ctx.target.ledger.backwards > 0
    gradient = b + x.flatten(1) @ a
    expected = torch.stack([restricted(a, g)[-1] for g in gradient])
    assert torch.allclose(found.eigenvalue, expected, rtol=1e-4)
    assert torch.allclose(found.first, 0.1 * gradient.norm(dim=1).double(), rtol=1e-4)
    assert torch.allclose(found.second, 0.5 * 0.1**2 * expected, atol=1e-5)
    assert torch.allclose(found.second_measured, found.second, atol=3e-5)  # exact for a quadratic, up to rounding


def test_linf_step_includes_its_first_order_part() -> None:
    a = torch.diag(torch.tensor([0.0, 50.0, 10.0]))
    b = torch.tensor([1.0, 0.0, 0.0])
    x = torch.full((1, 3), 0.5)
    threat = ThreatModel("Linf", 0.1)
    shifted = b - a @ x[0]  # gradient at x is b, so that the complement is the last two axes
    with context(Quadratic(a, shifted), x, torch.zeros(1, dtype=torch.int64), threat) as ctx:
        found = curvature(ctx, lambda scores, y: margin(scores, y), ctx.rng, slice(0, 1))
    assert float(found.eigenvalue) == pytest.approx(50, rel=1e-4)
    assert float(found.first) == pytest.approx(0.1, rel=1e-4)
    # sign(v) moves the second axis by ε (½·50·ε² = .25); others by rounding signs: +½·10·ε² = .05, |slope| ≤ .1
    assert float(found.second) >= 0.25 - 1e-3
    assert float(found.second_measured) == pytest.approx(float(found.second), abs=1e-3)
    assert bool(found.wins)


class Valley(nn.Module):
    """Nearly no slope along one axis, strong upward bend along the others."""

    def __init__(self, bend: float) -> None:
        super().__init__()
        self.bend = bend

    def forward(self, x: Tensor) -> Tensor:
        score = 0.01 * x[:, 0] + self.bend * (x[:, 1:] - 0.5).square().sum(dim=1) - 1
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_a_bent_valley_is_a_finding_and_a_straight_slope_is_not() -> None:
    x = torch.full((20, 4), 0.5)
    y = torch.zeros(20, dtype=torch.int64)
    with context(Valley(5.0), x, y) as ctx:
        bent = run_probe(get("low-gradient-curvature"), ctx)
    assert (bent.status, bent.value, bent.n) == ("finding", 1.0, 20)
    assert bent.details["margin"]["eigenvalue_median"] == pytest.approx(10, rel=1e-4)
    with context(Valley(0.001), x, y) as ctx:
        straight = run_probe(get("low-gradient-curvature"), ctx)
    assert (straight.status, straight.value) == ("pass", 0.0)


@pytest.mark.parametrize("model", [Linear(6), relu_net(6)])
def test_piecewise_linear_margins_have_no_curvature(model: nn.Module) -> None:
    with context(model, points(10, 6)) as ctx:
        result = run_probe(get("low-gradient-curvature"), ctx)
    assert result.value == 0
    assert result.details["margin"]["eigenvalue_largest"] == 0
    assert result.details["cross_entropy"]["eigenvalue_largest"] > 0


def test_gradients_that_cannot_be_differentiated_again_are_not_applicable() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return 2 * x * gradient

    model = Through(Linear(6), lambda x: Once.apply(x))  # type: ignore[no-untyped-call]
    with context(model, points(6, 6)) as ctx:
        result = run_probe(get("low-gradient-curvature"), ctx)
    assert result.status == "not_applicable"
    assert "differentiated twice" in result.reason
    assert "Once" in result.reason


def test_custom_backwards_are_named() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return 2 * x * gradient

    with context(Through(Linear(6), lambda x: Square.apply(x)), points(6, 6)) as ctx:  # type: ignore[no-untyped-call]
        custom = run_probe(get("low-gradient-curvature"), ctx)
    with context(Through(Linear(6), lambda x: x.square()), points(6, 6)) as ctx:
        plain = run_probe(get("low-gradient-curvature"), ctx)
    assert custom.details["custom_backwards"] == ["Square"]
    assert plain.details["custom_backwards"] == []
    assert custom.details["margin"] == pytest.approx(plain.details["margin"], rel=1e-4)
    assert custom.details["margin"]["eigenvalue_largest"] > 0
