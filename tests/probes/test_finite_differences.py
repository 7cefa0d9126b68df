"""Agreement of gradient and finite differences: honest models of every kind agree, hidden gradients do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from maskaudit.probes.differences import agreement, base_points, margin_differences, unit_directions
from maskaudit.probes.finite_differences import DIVISORS, POINTS, ScaleAgreement, beyond_doubt, headline
from maskaudit.probes.run import run_probe
from maskaudit.results import ProbeResult
from maskaudit.threat import Norm, ThreatModel

from .toys import Linear, Quadratic, Through, context, get, norm_threat, points, relu_net

both_norms = pytest.mark.parametrize("norm", ["Linf", "L2"])


def run(model: nn.Module, x: Tensor, threat: ThreatModel, **settings: object) -> ProbeResult:
    with context(model, x, threat=threat, **settings) as ctx:
        return run_probe(get("finite-difference-agreement"), ctx)


class _RandomBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(gradient.shape[0])
        return torch.randn(gradient.shape, generator=generator)


def random_backward(x: Tensor) -> Tensor:
    return _RandomBackward.apply(x)  # type: ignore[no-any-return,no-untyped-call]


def straight_through(levels: int) -> object:
    return lambda x: x + (torch.round(x * levels) / levels - x).detach()


def max_pool() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), Linear(36))


HONEST = {
    "linear": lambda: Linear(64),
    "two classes": lambda: Linear(64, classes=2),
    "relu": lambda: relu_net(64),
    "max pool": max_pool,
    "logits x 1e6": lambda: Through(relu_net(64), after=lambda z: 1e6 * z),
    "logits x 1e-6": lambda: Through(relu_net(64), after=lambda z: 1e-6 * z),
    "logits + 1000": lambda: Through(relu_net(64), after=lambda z: z + 1000),
    "probabilities": lambda: Through(relu_net(64), after=lambda z: z.softmax(dim=1)),
    "log-probabilities": lambda: Through(relu_net(64), after=lambda z: z.log_softmax(dim=1)),
    "clamped to the bounds": lambda: Through(relu_net(64), lambda x: x.clamp(0, 1)),
    "straight-through, 8 bits": lambda: Through(relu_net(64), straight_through(255)),  # type: ignore[arg-type]
    "tanh": lambda: nn.Sequential(Linear(64, 32, 0.1), nn.Tanh(), Linear(32, 3)),
}

HIDDEN = {
    "rounded input": lambda: Through(relu_net(64), lambda x: torch.round(3 * x) / 3),
    "zeroed backward": lambda: Through(relu_net(64), lambda x: x.detach() + 0 * x),
    "detached": lambda: Through(relu_net(64), lambda x: x.detach()),
    "random backward": lambda: Through(relu_net(64), random_backward),
    "negated backward": lambda: Through(relu_net(64), lambda x: 2 * x.detach() - x),
    "sine on the input": lambda: Through(relu_net(64), lambda x: x + 0.02 * torch.sin(2000 * x)),
    "sine on the logits": lambda: Through(relu_net(64), after=lambda z: z + 0.1 * torch.sin(2000 * z)),
}


@both_norms
@pytest.mark.parametrize("name", HONEST)
def test_honest_models_agree(name: str, norm: Norm) -> None:
    result = run(HONEST[name](), points(24, 64), norm_threat(norm))
    assert result.status == "pass", result.reason
    assert result.value is not None
    assert result.value > 0.9


@both_norms
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_gradients_disagree(name: str, norm: Norm) -> None:
    result = run(HIDDEN[name](), points(24, 64), norm_threat(norm))
    assert result.status == "finding", (result.value, result.reason)
    assert result.value is not None
    assert result.value < 0.6
    assert result.findings


@both_norms
def test_linear_model_agrees_exactly_and_is_asked_no_further(norm: Norm) -> None:
    result = run(Linear(64), points(24, 64), norm_threat(norm))
    (coarse,) = result.details["scales"]
    assert coarse["scale"] == f"ε/{DIVISORS[0]}"
    assert coarse["agreement"] == pytest.approx(1, abs=1e-6)
    assert coarse["points"] == POINTS < 24


def test_where_nothing_agrees_every_scale_is_asked_on_as_few_points() -> None:
    result = run(Through(relu_net(64), random_backward), points(24, 64), norm_threat("Linf"))
    assert [scale["scale"] for scale in result.details["scales"]] == [f"ε/{divisor}" for divisor in DIVISORS]
    assert {scale["points"] for scale in result.details["scales"]} == {POINTS}


@pytest.mark.parametrize(
    ("mean", "spread", "n", "certain"),
    [(0.97, 0.02, 16, True), (0.2, 0.3, 16, True), (0.86, 0.05, 16, False), (0.97, 0.2, 16, False),
     (0.97, 0.2, 160, True), (0.97, 0.0, 9, False)],
)  # fmt: skip
def test_points_are_asked_until_the_mean_is_beyond_doubt(mean: float, spread: float, n: int, certain: bool) -> None:
    cosines = mean + spread * torch.tensor([1.0, -1.0]).repeat(n // 2 + 1)[:n].double()
    assert beyond_doubt(cosines) is certain


def test_a_healthy_gradient_is_seen_for_the_price_of_thirty_passes_a_point() -> None:
    with context(relu_net(64), points(64, 64), threat=norm_threat("Linf")) as ctx:
        before = ctx.target.ledger.copy()
        assert run_probe(get("finite-difference-agreement"), ctx).status == "pass"
        spent = ctx.target.ledger.since(before)
    assert spent.forwards + spent.backwards <= 30 * POINTS


def test_central_differences_of_a_quadratic_are_exact() -> None:
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(8, 8, generator=generator)
    model = Quadratic(a + a.T, torch.randn(8, generator=generator), shift=20.0)
    threat = norm_threat("L2")
    with context(model, points(12, 8), threat=threat) as ctx:
        directions = unit_directions(ctx)
        base = base_points(ctx, directions, threat.eps / 4)
        rival = 1 - ctx.y
        gradient = (model.b + base @ model.a).detach().double()  # of z_1 − z_0, for class 0
        measured, predicted = margin_differences(ctx, base, rival, directions * threat.eps / 4, gradient)
    assert torch.allclose(measured, predicted, atol=2e-5)
    assert bool((ctx.y == 0).all())


def test_points_are_compared_alike_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(relu_net(64), points(24, 64), norm_threat("Linf"))
    monkeypatch.setattr("maskaudit.target.chunks.MOST_ELEMENTS", 5 * 12 * 64)
    parts = run(relu_net(64), points(24, 64), norm_threat("Linf"))
    assert parts.value == pytest.approx(whole.value, abs=1e-6)
    assert parts.n == whole.n


@both_norms
def test_all_evaluations_stay_inside_the_bounds(norm: Norm) -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x

    x = points(12, 64).round()  # every pixel on a bound
    threat = norm_threat(norm)
    with context(Through(Linear(64), watch), x, threat=threat) as ctx:
        directions = unit_directions(ctx)
        base = base_points(ctx, directions, threat.eps / 4)
        moved = threat.clamp(base + directions * threat.eps / 4) - base
        run_probe(get("finite-difference-agreement"), ctx)
    assert torch.allclose(moved, directions * threat.eps / 4, atol=1e-6)  # room for the step: nothing is clipped
    assert bool(torch.stack([(s >= 0).all() & (s <= 1).all() for s in seen]).all())
    size = directions.abs().amax(dim=2) if norm == "Linf" else directions.norm(dim=2)
    assert bool((size <= 1 + 1e-6).all())
    assert bool((threat.distance(base, x) <= threat.eps).all())


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 255.0), (-3.0, 5.0)])
def test_other_bounds_and_a_ball_wider_than_the_box(bounds: tuple[float, float]) -> None:
    x = bounds[0] + (bounds[1] - bounds[0]) * points(16, 64)
    for share in (0.05, 3.0):
        threat = ThreatModel("Linf", share * (bounds[1] - bounds[0]), bounds)
        result = run(relu_net(64), x, threat)
        assert result.value is not None
        assert result.value > 0.85, (bounds, share)


@pytest.mark.parametrize("after", [lambda z: 0 * z, lambda z: nn.functional.one_hot(z.argmax(1), 3).float()])
def test_flat_outputs_are_undefined_not_healthy(after: object) -> None:
    result = run(Through(Linear(64), after=after), points(16, 64), norm_threat("Linf"))  # type: ignore[arg-type]
    assert result.status == "not_applicable"
    assert "Undefined" in result.reason


def test_differences_below_rounding_are_not_counted() -> None:
    result = run(Through(relu_net(64), after=lambda z: z + 1e5), points(24, 64), norm_threat("Linf"))
    if result.status != "not_applicable":
        counted = [scale["points"] for scale in result.details["scales"] if scale["agreement"] is not None]
        assert counted[0] < 24 or result.value > 0.95
    fine = run(Through(relu_net(64), after=lambda z: z + 1e8), points(24, 64), norm_threat("Linf"))
    assert (fine.status, fine.details["measured_in"]) == ("pass", "float64")  # above that of float64


def test_half_precision_is_not_accused_at_small_radii() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = relu_net(64).to(torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.to(torch.bfloat16)).float()

    result = run(Half(), points(24, 64), ThreatModel("Linf", 2 / 255))
    assert result.status in ("pass", "not_applicable")


def test_random_models_are_not_measured() -> None:
    model = Through(Linear(64), lambda x: x + 0.1 * torch.randn_like(x))
    assert run(model, points(8, 64), norm_threat("Linf"), draws=4).status == "not_applicable"


def test_gradients_that_are_not_finite_count_as_disagreement() -> None:
    model = Through(Linear(64), lambda x: x + 0 * torch.sqrt(x.detach() * 0 + 0 * x))  # NaN backward, exact forward
    result = run(model, points(16, 64), norm_threat("Linf"))
    assert result.details["points_without_finite_gradient"] == 16
    assert (result.status, result.value) == ("finding", 0.0)


def test_cosine_and_usability() -> None:
    measured = torch.tensor([[1.0, 1.0, 0.0, 1e-9], [2.0, -1.0, 0.0, 1e-9]], dtype=torch.float64)
    predicted = torch.tensor([[2.0, 1.0, 1.0, 1e-9], [4.0, 1.0, 1.0, 1e-9]], dtype=torch.float64)
    cosine, usable = agreement(measured, predicted, torch.full((4,), 1e-6, dtype=torch.float64))
    assert cosine.tolist() == pytest.approx([1, 0, 0, 1])
    assert usable.tolist() == [True, True, True, False]


def _scales(*values: float | None) -> list[ScaleAgreement]:
    return [ScaleAgreement(4**k, 0.1, value, 20, 0) for k, value in enumerate(values, 1)]


def test_headline_is_the_worst_scale_up_to_one_that_agrees() -> None:
    def chosen(*values: float | None) -> float | None:
        scale = headline(_scales(*values))
        return None if scale is None else scale.agreement

    assert chosen(0.99, 0.4, 0.1) == 0.99  # smooth backward over small stairs
    assert chosen(0.3, 0.1, 0.99) == 0.1
    assert chosen(0.8, 0.95, 0.1) == 0.8
    assert chosen(None, 0.2, 0.3) == 0.2
    assert chosen(None, None) is None
    assert not math.isnan(chosen(0.0, 0.0) or 0.0)
