"""Zero gradient and loss-decision ratio against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from maskaudit.probes.gradient_ratio import log10_doubt
from maskaudit.probes.run import run_probe
from maskaudit.results import ProbeResult

from .toys import Linear, Through, context, get, points, relu_net


def run(rule: str, model: nn.Module | object, x: Tensor, y: Tensor | None = None) -> ProbeResult:
    with context(model, x, y) as ctx:  # type: ignore[arg-type]
        return run_probe(get(rule), ctx)


class NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, math.nan)


def test_honest_network_has_gradients() -> None:
    result = run("zero-gradient", relu_net(6), points(20, 6))
    assert (result.status, result.value) == ("pass", 0.0)
    assert result.details["connected"] is True
    assert result.details["zero_margin_share"] == 0


@pytest.mark.parametrize("cut", [torch.round, torch.sign, lambda x: x.detach(), lambda x: x.detach() + 0 * x])
def test_cut_gradients_are_counted(cut: object) -> None:
    result = run("zero-gradient", Through(relu_net(6), cut), points(20, 6))  # type: ignore[arg-type]
    assert (result.status, result.value, result.n) == ("finding", 1.0, 20)
    assert result.details["zero_margin_share"] == 1
    assert result.low is not None
    assert result.low > 0.7


def test_disconnected_output_is_reported_first() -> None:
    result = run("zero-gradient", Through(relu_net(6), lambda x: x.detach()), points(20, 6))
    assert result.details["connected"] is False
    assert "not connected" in result.findings[0].message


def test_gradients_that_are_not_finite_count_and_are_told_apart() -> None:
    def partly(x: Tensor) -> Tensor:
        return torch.where(x[:, :1] < 0.5, NaNGradient.apply(x), x)  # type: ignore[no-untyped-call]

    x = points(20, 6)
    x[:, 0] = torch.tensor([0.2] * 5 + [0.8] * 15)

    class Partly(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.cat([partly(x[:5]), x[5:]]) if len(x) == 20 else x)

    result = run("zero-gradient", Partly(6), x)
    assert result.value == 0.25
    assert result.details["not_finite"] == 5
    assert result.details["zero"] == 0


def test_scaled_logits_lose_the_loss_gradient_and_keep_the_margins() -> None:
    x = points(20, 6)
    result = run("zero-gradient", Linear(6, scale=1e5), x)
    assert result.value == 1.0
    assert result.details["zero_margin_share"] == 0
    assert run("zero-gradient", Linear(6), x).value == 0


# two classes: ∇CE = (1 − p_y) ∇margin exactly, so that the ratio is 1 − p_y whatever the weights and the norm


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_ratio_of_a_two_class_model_is_one_minus_p(scale: float) -> None:
    x = points(21, 6)
    model = Linear(6, classes=2, scale=scale)
    result = run("loss-decision-gradient-ratio", model, x)
    z = model(x).double().detach()
    doubt = torch.log10(torch.softmax(z, dim=1).amin(dim=1))
    resolved = doubt > -6  # below, float32 rounds 1 − p_y itself
    measured = torch.tensor(result.details["per_point"], dtype=torch.float64)
    assert torch.allclose(measured[resolved], doubt[resolved], atol=2e-2)
    assert torch.allclose(measured, doubt, atol=0.5)
    assert result.value == pytest.approx(float(doubt.median()), abs=2e-2)
    assert result.details["dual_norm_median"] == pytest.approx(result.value, abs=2e-2)
    assert result.details["underflow"] == 0
    assert result.status == "pass"


def test_underflow_is_told_from_small_and_gets_its_exact_figure() -> None:
    x = points(21, 6)
    model = Linear(6, classes=2, scale=1e4)
    result = run("loss-decision-gradient-ratio", model, x)
    gap = (model(x)[:, 0] - model(x)[:, 1]).abs().double().detach()
    expected = -gap / math.log(10)  # 1 − p = exp(−gap) for large gaps
    assert result.status == "finding"
    assert result.details["underflow"] == int((gap > 104).sum())
    assert result.value == pytest.approx(float(expected.median()), rel=1e-5)
    assert result.details["true_class_term_lost"] == int((gap > 24 * math.log(2)).sum())


def test_doubt_is_finite_beyond_double_precision() -> None:
    scores = torch.tensor([[0.0, -1e6], [0.0, 0.0], [3e5, 2.9e5]])
    doubt = log10_doubt(scores, torch.tensor([0, 0, 0]))
    assert doubt.tolist() == pytest.approx([-1e6 / math.log(10), math.log10(0.5), -1e4 / math.log(10)])


def test_ratio_needs_a_margin_gradient() -> None:
    result = run("loss-decision-gradient-ratio", Through(relu_net(6), torch.round), points(8, 6))
    assert result.status == "not_applicable"
    assert "zero-gradient" in result.reason
