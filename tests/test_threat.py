"""The ball and the box: projections, admissibility, directions, bad values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskaudit.errors import UsageError
from maskaudit.threat import Norm, ThreatModel, customary_eps, per_point_norm

THREATS = [
    ThreatModel(norm, eps, bounds)
    for norm, eps in (("Linf", 0.03), ("Linf", 0.7), ("L2", 0.05), ("L2", 3.0))
    for bounds in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-2.1, 2.6))
]
SHAPES = [(64,), (3, 8, 8), (3, 96, 96)]


def clean_points(threat: ThreatModel, shape: tuple[int, ...], n: int = 8) -> Tensor:
    """Points in the bounds, a good part of the coordinates exactly on them."""
    low, high = threat.bounds
    generator = torch.Generator().manual_seed(n + len(shape))
    return (low + (high - low) * (1.6 * torch.rand(n, *shape, generator=generator) - 0.3)).clamp(low, high)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e6, 3e37])
def test_projection_is_admissible_idempotent_and_leaves_the_inside_alone(
    threat: ThreatModel, shape: tuple[int, ...], size: float
) -> None:
    x = clean_points(threat, shape)
    x_adv = x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    projected = threat.project(x_adv, x)
    assert bool(threat.admissible(projected, x).all())
    assert float(projected.min()) >= threat.bounds[0] or math.isclose(projected.min(), threat.bounds[0], rel_tol=1e-6)
    again = threat.project(projected, x)
    assert torch.allclose(again, projected, rtol=0, atol=4 * 2**-23 * max(map(abs, (*threat.bounds, threat.eps))))
    inside = threat.clamp(x + 0.5 * threat.eps / x[0].numel())
    assert torch.equal(threat.project(inside, x), inside)


@pytest.mark.parametrize("size", [1e-20, 0.3, 1e20, 1e38])
def test_l2_projection_keeps_the_direction_at_any_length(size: float) -> None:
    threat = ThreatModel("L2", 0.25, (-1.0, 1.0))
    direction = torch.full((1, 64), 0.125)
    projected = threat.project(size * direction, torch.zeros(1, 64))
    assert torch.allclose(projected, min(size, 0.25) * direction, rtol=1e-5, atol=0)


def test_linf_projection_is_the_nearest_point() -> None:
    threat = ThreatModel("Linf", 0.1)
    x = torch.tensor([[0.05, 0.5, 0.95]])
    assert torch.allclose(threat.project(torch.tensor([[-1.0, 0.55, 3.0]]), x), torch.tensor([[0.0, 0.55, 1.0]]))


@pytest.mark.parametrize(
    ("norm", "delta", "expected"),
    [
        ("Linf", [0.1, -0.1], True),
        ("Linf", [0.1001, 0.0], False),
        ("L2", [0.06, 0.08], True),
        ("L2", [0.07, 0.08], False),
        ("L2", [0.1, 0.0], True),
        ("Linf", [0.0, math.nan], False),
        ("L2", [math.inf, 0.0], False),
    ],
)
def test_admissible_in_the_ball(norm: Norm, delta: list[float], expected: bool) -> None:
    x = torch.full((1, 2), 0.5)
    assert bool(ThreatModel(norm, 0.1).admissible(x + torch.tensor([delta]), x)) is expected


@pytest.mark.parametrize(("value", "expected"), [(-2.98e-08, True), (1 + 2**-23, True), (-1e-4, False), (1.001, False)])
def test_admissible_in_the_box_up_to_rounding(value: float, expected: bool) -> None:
    x = torch.tensor([[min(max(value, 0.0), 1.0)]])
    assert bool(ThreatModel("Linf", 0.1).admissible(torch.tensor([[value]]), x)) is expected


def test_one_coordinate_or_one_point_outside_is_enough() -> None:
    x = torch.full((3, 2, 4, 4), 0.5)
    x_adv = x.clone()
    x_adv[1, 1, 2, 3] += 0.2
    assert ThreatModel("Linf", 0.1).admissible(x_adv, x).tolist() == [True, False, True]


@pytest.mark.parametrize("scale", [1e-44, 1e-39, 1e-20, 1.0, 1e20, 3e38])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_step_direction_is_a_unit_vector_even_for_vanishing_gradients(norm: Norm, scale: float) -> None:
    gradient = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]) * scale
    direction = ThreatModel(norm, 0.1).step_direction(gradient)
    size = 1.0 if norm == "Linf" else 0.5
    assert torch.allclose(direction[0], size * torch.tensor([1.0, -1.0, 1.0, 1.0]))
    assert bool((direction[1] == 0).all())


def test_dual_norm_is_the_gain_of_a_unit_step() -> None:
    gradient = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    for norm in ("Linf", "L2"):
        threat = ThreatModel(norm, 0.1)  # type: ignore[arg-type]
        gain = (threat.step_direction(gradient) * gradient).flatten(1).sum(1)
        assert torch.allclose(gain, threat.dual_norm(gradient))


def test_per_point_norm_agrees_with_float64() -> None:
    rows = torch.randn(6, 50, generator=torch.Generator().manual_seed(3)) * torch.tensor(
        [[1e-40], [1e-25], [1.0], [1e15], [1e30], [0.0]]
    )
    assert torch.allclose(per_point_norm(rows).double(), rows.double().norm(dim=1), rtol=1e-4, atol=1e-44)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("L1", 0.1), "Linf or L2, got 'L1'"),
        (("linf", 0.1), "Linf or L2"),
        (("Linf", 0.0), "positive number, got 0"),
        (("L2", -0.1), "positive number, got -0.1"),
        (("Linf", math.nan), "got nan"),
        (("L2", math.inf), "got inf"),
        (("Linf", 0.1, (1.0, 1.0)), "smallest first, got 1,1"),
        (("Linf", 0.1, (1.0, -1.0)), "smallest first"),
        (("Linf", 0.1, (0.0, math.inf)), "finite"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        ThreatModel(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_with_eps_keeps_the_rest() -> None:
    assert ThreatModel("L2", 0.1, (-1.0, 2.0)).with_eps(0.4) == ThreatModel("L2", 0.4, (-1.0, 2.0))


@pytest.mark.parametrize(
    ("norm", "shape", "bounds", "eps"),
    [
        ("Linf", (3, 32, 32), (0.0, 1.0), 8 / 255),
        ("Linf", (3, 224, 224), (-1.0, 1.0), 16 / 255),
        ("Linf", (1, 28, 28), (0.0, 1.0), 0.3),
        ("Linf", (1, 8, 8), (0.0, 255.0), 51.0),
        ("L2", (3, 32, 32), (0.0, 1.0), 0.5),
        ("L2", (1, 8, 8), (0.0, 1.0), 0.8),
    ],
)
def test_customary_eps(norm: Norm, shape: tuple[int, ...], bounds: tuple[float, float], eps: float) -> None:
    assert customary_eps(norm, shape, bounds) == pytest.approx(eps)
