"""Models that run under `torch.func`: their ops see wrapped tensors, and are traced and repaired all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from maskaudit.probes import dead_relu
from maskaudit.probes.interface import ProbeContext
from maskaudit.repairs.dormant import dormant_units
from maskaudit.repairs.propose import propose
from maskaudit.repairs.target import repaired_target
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from maskaudit.trace import trace_model

Points = tuple[Tensor, Tensor]
Front = Callable[[Tensor], Tensor]


class PerPoint(nn.Module):
    """A network that sees one point at a time, under `vmap`, behind a front."""

    def __init__(self, net: nn.Module, front: Front) -> None:
        super().__init__()
        self.net, self.front = net, front

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = torch.vmap(lambda point: self.net(self.front(point)[None])[0])(x)
        return answers


def coarse(x: Tensor) -> Tensor:
    return (x * 3).round() / 3


def cut(x: Tensor) -> Tensor:
    return x.detach()


def rippled(x: Tensor) -> Tensor:
    return x + 0.05 * torch.sin(300 * x)


@pytest.mark.parametrize(
    ("front", "mechanism", "op"),
    [(coarse, "shattered", "round"), (cut, "cut", "detach"), (rippled, "jagged-surface", "sin")],
)
def test_a_mask_under_vmap_is_named_and_repaired(
    front: Front, mechanism: str, op: str, net: nn.Module, points: Points
) -> None:
    model = PerPoint(net, front).eval()
    with Target(model) as target:
        y = target.predict(target.scores(points[0]))
        found = trace_model(target, points[0], y, eps=0.2)
        (culprit,) = found.culprits
        assert (culprit.mechanism, culprit.location.op) == (mechanism, op)
        assert culprit.location.line == front.__code__.co_firstlineno + 1
        with repaired_target(target, propose(found)) as repaired:
            result = repaired.value_and_grad(points[0], lambda scores, rows: target.margin(scores, y[rows]))
        assert torch.equal(result.scores, target.scores(points[0]))
        assert bool((result.grad.flatten(1).abs().amax(dim=1) > 0).all())


def test_an_honest_network_under_vmap_is_not_suspected(net: nn.Module, points: Points) -> None:
    with Target(PerPoint(net, torch.clone).eval()) as target:
        found = trace_model(target, points[0], target.predict(target.scores(points[0])), eps=0.2)
    assert found.healthy
    assert "net.0.conv2d" in [f"{op.location.module}.{op.location.op}" for op in found.ops]


def test_units_are_told_apart_by_point_under_vmap(net: nn.Module, points: Points) -> None:
    counted, dead = [], []
    for model in (net, PerPoint(net, torch.clone).eval()):
        with Target(model) as target:
            units = dormant_units(target, points[0])
            counted.append([int(sum(u.count_nonzero() for u in calls if u is not None)) for calls in units.values()])
            rng = PointRNG.create(0, "test", torch.arange(len(points[0])))
            dead.append(dead_relu.measure(ProbeContext(target, *points, ThreatModel("Linf", 0.2), rng)).value)
    assert counted[0] == counted[1] != []
    assert dead[0] == dead[1] > 0


def test_scores_that_only_steer_the_input_are_not_taken_for_those_of_the_output(net: nn.Module, points: Points) -> None:
    """The network steps along a gradient of its own scores first; what follows those is not the output."""

    class Steered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            slope = torch.func.grad(lambda inner: self.net(inner).logsumexp(dim=1).sum())(x)
            answers: Tensor = self.net(x - 0.001 * slope)
            return answers

    with Target(Steered().eval()) as target:
        found = trace_model(target, points[0], target.predict(target.scores(points[0])), eps=0.2)
    assert found.healthy
