"""The probe of the gradient against depth: what it reports, raises and spends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit.probes.layer_flow import MAX_POINTS
from maskaudit.probes.run import run_probe
from maskaudit.results import ProbeResult

from .toys import Linear, context, get, points


class Fading(nn.Module):
    """Sigmoid layers, whose answers differ from point to point by what a short way adds without a gradient."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth, self.head = depth, Linear(6)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for _ in range(self.depth):
            h = torch.sigmoid(h)
        return self.head(h) + self.head(x.detach())


def measured(model: nn.Module, n: int = 6) -> ProbeResult:
    with context(model, points(n, 6)) as ctx:
        return run_probe(get("layer-gradient-flow"), ctx)


def test_a_gradient_that_fades_is_raised_with_the_layer_it_reached() -> None:
    result = measured(Fading(90))
    assert (result.status, result.value) == ("finding", 1.0)
    assert "lost to depth on 6 of 6 points" in result.findings[0].message
    assert "sigmoid" in result.findings[0].message
    assert result.details["layers"][-1]["norm"] == 0.0
    assert result.details["factor_per_layer"] is None


def test_a_healthy_deep_network_is_informed_about_only() -> None:
    result = measured(Fading(10))
    assert (result.status, result.findings) == ("pass", ())
    assert result.details["log10_change"] == pytest.approx(10 * -0.64, abs=0.5)
    assert 0.1 < result.details["factor_per_layer"] < 1
    assert len(result.details["layers"]) == 13


def test_nothing_is_measured_twice_and_few_points_are() -> None:
    with context(Fading(10), points(40, 6)) as ctx:
        before = ctx.target.ledger.copy()
        result = run_probe(get("layer-gradient-flow"), ctx)
        spent = ctx.target.ledger.since(before)
    assert result.n == MAX_POINTS
    assert (spent.forwards, spent.backwards) == (MAX_POINTS, 3 * MAX_POINTS)


def test_without_a_gradient_it_is_not_applicable() -> None:
    with context(lambda x: x.detach()[:, :3] * 1.0, points(4, 6)) as ctx:
        missing = run_probe(get("layer-gradient-flow"), ctx)
    assert missing.status == "not_applicable"
    assert "not connected" in missing.reason
