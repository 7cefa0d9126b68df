"""Networks that work on complex numbers: their gradient is traced, and what hides it is named."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskaudit.target import Target
from maskaudit.trace import trace_model

Points = tuple[Tensor, Tensor]


class InFrequencies(nn.Module):
    """A network behind a function of the spectrum of its input."""

    def __init__(self, net: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x)
        answers: Tensor = self.net(torch.fft.ifft2(self.function(spectrum)).real)
        return answers


def rounded(spectrum: Tensor) -> Tensor:
    return torch.complex(spectrum.real.round(), spectrum.imag.round())


def test_an_honest_spectrum_is_not_suspected(net: nn.Module, points: Points) -> None:
    with Target(InFrequencies(net, torch.clone).eval()) as target:
        found = trace_model(target, points[0], points[1], eps=0.2)
    assert found.healthy
    assert not found.health.poor
    flow = next(op.flow for op in found.ops if op.location.op == "fft_fft2")
    assert flow is not None
    assert flow.norm_in > 0


def test_a_rounded_spectrum_is_named(net: nn.Module, points: Points) -> None:
    with Target(InFrequencies(net, rounded).eval()) as target:
        y = target.predict(target.scores(points[0]))
        found = trace_model(target, points[0], y, eps=0.2)
    assert {(c.mechanism, c.location.op) for c in found.culprits} == {("shattered", "round")}
