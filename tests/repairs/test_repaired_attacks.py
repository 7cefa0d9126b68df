"""Diagnose, repair, attack: masked models are broken, healthy ones cost nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit.attacks.apgd import apgd
from maskaudit.loading import LoadedModel
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.scores import detect_outputs
from maskaudit.threat import ThreatModel
from maskaudit.zoo.masks import inputs, outputs
from tests.repairs.planned import repaired_attacks
from tests.trace import masked_models as zoo
from tests.trace.masked_models import MASKED, Masked

pytestmark = pytest.mark.heavy

LINF = ThreatModel("Linf", 0.2)
Points = tuple[Tensor, Tensor]

#: Share left after the repaired attack. A saturated tanh on the input binarises it and really is harder:
#: Square with 1,000 queries leaves .45 on the same points.
LEFT = {"tanh": 0.5, "sign-middle": 0.05}


def rng(n: int) -> PointRNG:
    return PointRNG.create(0, "test", torch.arange(n))


def opened(model: nn.Module, points: Points) -> tuple[Target, Tensor, Tensor]:
    """A target and the points that it answers correctly."""
    x, y = points
    target = Target(model.eval())
    target.outputs = detect_outputs(target.raw(x))
    right = target.scores(x).argmax(1) == y
    return target, x[right], y[right]


@pytest.mark.parametrize("case", MASKED, ids=lambda case: case.name)
def test_masked_models_fall(case: Masked, net: nn.Module, points: Points) -> None:
    target, x, y = opened(case.build(net), points)
    with target:
        attempt = repaired_attacks(target, x, y, threat=LINF, rng=rng(len(x)), steps=30)
        assert bool(LINF.admissible(attempt.examples, x).all())
        left = float((target.margin(target.scores(attempt.examples), y) <= 0).double().mean())
    assert left <= LEFT.get(case.name, 0.02)
    assert bool((attempt.queries > 0).all())


def test_op_without_derivative_is_repaired(net: nn.Module, points: Points) -> None:
    """White-box attacks raise here; repaired ones do not."""
    target, x, y = opened(zoo.Front(net, zoo.Apply(lambda h: h // 0.125 * 0.125)), points)
    with target:
        attempt = repaired_attacks(target, x, y, threat=LINF, rng=rng(len(x)), steps=20)
        left = float((target.margin(target.scores(attempt.examples), y) <= 0).double().mean())
    assert left <= 0.02


def test_random_model_behind_a_quantiser(net: nn.Module, points: Points) -> None:
    """Gradients and decisions are means over draws; every point runs to the end."""
    noisy = zoo.Front(net, zoo.Apply(lambda h: torch.round((h + 0.05 * torch.randn_like(h)) * 7) / 7)).eval()
    target = Target(noisy, draws=4)
    with target:
        right = target.scores(points[0]).argmax(1) == points[1]
        x, y = points[0][right], points[1][right]
        attempt = repaired_attacks(target, x, y, threat=LINF, rng=rng(len(x)), steps=10)
        left = float((target.margin(target.scores(attempt.examples), y) <= 0).double().mean())
    assert left <= 0.05


def test_a_model_without_faults_or_dormant_units_costs_nothing(points: Points) -> None:
    x = points[0]
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with Target(linear) as target:
        attempt = repaired_attacks(target, x, target.raw(x).argmax(1), threat=LINF, rng=rng(len(x)))
    assert torch.equal(attempt.examples, x)
    assert int(attempt.queries.sum()) == 0


def test_healthy_models_cost_a_short_look_behind_dormant_units(net: nn.Module, points: Points) -> None:
    target, x, y = opened(net, points)
    with target:
        attempt = repaired_attacks(target, x, y, threat=LINF, rng=rng(len(x)))
    assert 0 < int(attempt.queries.max()) <= 35


class StraightThrough(nn.Module):
    """The same function as `QuantisedInput`, with the gradient that its repair should give."""

    def __init__(self, inner: nn.Module, levels: int) -> None:
        super().__init__()
        self.inner, self.steps = inner, levels - 1

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + (torch.round(x * self.steps) / self.steps - x).detach())


@pytest.mark.parametrize("levels", [4, 81])
def test_robust_model_behind_a_quantiser(levels: int, pgd_trained: LoadedModel, points: Points) -> None:
    """The repair leaves what an attack through a straight-through twin leaves, within two points in a hundred."""
    inner = pgd_trained.module
    assert isinstance(inner, nn.Module)
    target, x, y = opened(inputs.QuantisedInput(inner, levels), points)
    plain = Target(StraightThrough(inner, levels).eval())
    twin = torch.ones(len(x), dtype=torch.bool)
    for loss in ("margin", "rescaled", "targeted-margin"):
        bare = apgd(plain, x, y, threat=LINF, rng=rng(len(x)), loss=loss, steps=50, targets=3)  # type: ignore[arg-type]
        twin &= target.raw(bare.examples).argmax(1) == y
    with target:
        attempt = repaired_attacks(target, x, y, threat=LINF, rng=rng(len(x)))
        left = target.raw(attempt.examples).argmax(1) == y
    assert int(left.sum()) < len(x)
    assert int(left.sum()) - int(twin.sum()) <= 0.02 * len(x)


def test_reruns_agree_and_l2_works(net: nn.Module, points: Points) -> None:
    target, x, y = opened(outputs.SharpSoftmax(inputs.QuantisedInput(net, 4), 100.0), points)
    threat = ThreatModel("L2", 1.0)
    with target:
        first, second = (repaired_attacks(target, x, y, threat=threat, rng=rng(len(x)), steps=10) for _ in range(2))
    assert torch.equal(first.examples, second.examples)
    assert bool(threat.admissible(first.examples, x).all())
