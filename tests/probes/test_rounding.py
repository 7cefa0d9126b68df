"""Small changes of large scores drown in float32; that is no fault of the gradient, and no finding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from maskaudit.probes import finite_differences, zero_gradient
from maskaudit.probes.interface import NotApplicable, ProbeContext
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from maskaudit.trace.model import trace_model
from maskaudit.verdict.limits import AGREEMENT, TRACE_AGREEMENT

X = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class LayerScale(nn.Module):
    """Residual blocks whose branches, and with them the input, enter through a small factor."""

    def __init__(self, scale: float, rough: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(36, 16), nn.Linear(16, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()) for _ in range(3))
        self.scale, self.rough = scale, rough

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        seen = self.embed((7 * x).round() / 7 if self.rough else x)
        state = torch.ones(len(x), 16)
        for block in self.blocks:
            state = state + self.scale * block(state + self.scale * seen)
        return self.head(state)


class Small(nn.Module):
    """Differences of scores that are a small part of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net, self.level = nn.Linear(36, 5), nn.Parameter(torch.full((5,), 100.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.level + 1e-4 * self.net(x.flatten(1)).tanh()


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    **{f"scale {scale:g}": lambda scale=scale: LayerScale(scale) for scale in (1.0, 1e-2, 1e-4, 1e-6)},
    "small next to large": Small,
}


def seen(model: nn.Module) -> tuple[Target, Tensor, ProbeContext]:
    target = Target(model.eval())
    y = target.raw(X).argmax(1)
    return target, y, ProbeContext(target, X, y, ThreatModel("Linf", 0.05), PointRNG.create(0, "p", torch.arange(24)))


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_healthy_networks_with_small_outputs_show_no_finding(make: Callable[[], nn.Module]) -> None:
    target, y, context = seen(make())
    with target:
        trace = trace_model(target, X, y, eps=0.05)
        measured = finite_differences.measure(context)
    assert not trace.culprits, trace.culprits
    assert all(value > TRACE_AGREEMENT for _, value in trace.health.agreement)
    assert measured.value > AGREEMENT, measured.details


def test_the_report_says_in_what_the_differences_were_taken() -> None:
    target, _, context = seen(LayerScale(1e-4))
    with target:
        assert finite_differences.measure(context).details["measured_in"] == "float64"
    target, _, context = seen(LayerScale(1.0))
    with target:
        assert finite_differences.measure(context).details["measured_in"] == "float32"


def test_a_real_fault_is_found_in_float64_as_well() -> None:
    class Lying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = LayerScale(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.detach()) + self.net(x.flip(3)) - self.net(x.flip(3)).detach()

    for model in (LayerScale(1.0, rough=True), Lying()):
        target, y, context = seen(model)
        with target:
            assert finite_differences.measure(context).value < AGREEMENT
            found = trace_model(target, X, y, eps=0.05).health.agreement
            assert min(value for _, value in found) < TRACE_AGREEMENT


def test_gradients_that_half_precision_loses_are_counted_beside_float32() -> None:
    """Cross-entropy of a confident network: 1 − p is 0 in half precision, and so is its gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.LogSoftmax(1))
    with torch.no_grad():
        net[1].bias += 20 * torch.eye(5)[2]
    target = Target(net.half().eval(), outputs="log-probabilities")
    target.form = target.form.changed(dtype="float16")
    y = target.raw(X).argmax(1)
    context = ProbeContext(target, X, y, ThreatModel("Linf", 0.05), PointRNG.create(0, "p", torch.arange(24)))
    with target:
        measured = zero_gradient.measure(context)
    assert measured.count
    assert measured.details["useless_in_float32"] < measured.count
    assert any("in float32 on" in finding.message for finding in measured.findings)


def test_without_a_copy_in_float64_the_figure_stays() -> None:
    net = LayerScale(1e-4).eval()
    target = Target(lambda x: net(x))
    y = target.raw(X).argmax(1)
    context = ProbeContext(target, X, y, ThreatModel("Linf", 0.05), PointRNG.create(0, "p", torch.arange(24)))
    with target, pytest.raises(NotApplicable, match="more than rounding"):
        finite_differences.measure(context)
