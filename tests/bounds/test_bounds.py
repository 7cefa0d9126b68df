"""Bounds hold: against samples, against an exact solver, against rounding; and what has none is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.mip import solve
from maskaudit.bounds.capture import captured
from maskaudit.bounds.certificate import certified, differences, margins
from maskaudit.bounds.linear import Region, intervals, relaxation
from maskaudit.bounds.network import Step, UnboundableError
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from tests.bounds.networks import Joined, Residual, mlp


def _inside(x: Tensor, threat: ThreatModel, draw: torch.Generator) -> Tensor:
    """An input in each ball, corners among them."""
    noise = torch.randn(x.shape, generator=draw)
    step = noise.sign() if threat.norm == "Linf" else noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return threat.project(x + threat.eps * step * torch.rand(1, generator=draw).round(), x)


@pytest.mark.parametrize("tighten", [False, True])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.05), ("L2", 0.4)])
@pytest.mark.parametrize("make", [Residual, Joined, lambda: mlp(36, 20, 20, 3)])
def test_no_sample_leaves_the_bounds(make, norm: str, eps: float, tighten: bool) -> None:
    torch.manual_seed(0)
    x, draw = torch.rand(4, 1, 6, 6), torch.Generator().manual_seed(0)
    with Target(make()) as target, torch.no_grad():
        network = captured(target, x)
        y, threat = target.raw(x).argmax(1), ThreatModel(norm, eps)
        region = Region.around(x, threat)
        found = intervals(network, region, tighten=tighten)
        lowest = margins(network, region, found, y)
        for _ in range(60):
            values = network.values(_inside(x, threat, draw).double())
            for low, value, high in zip(found.low, values, found.high, strict=True):
                assert (low - 1e-9 <= value).all()
                assert (value <= high + 1e-9).all()
            assert (lowest <= torch.einsum("dsk,dk->ds", differences(3, y), values[-1])).all()
        exact = values[-1] - network.finish(values[-1]) if make is Residual else None
        assert exact is None or (exact - exact[:, :1]).abs().max() < 1e-9  # the last softmax moves all scores alike


def test_tight_bounds_are_tighter_and_certify_more() -> None:
    torch.manual_seed(1)
    x, threat = torch.rand(12, 8), ThreatModel("Linf", 0.08)
    with Target(mlp(8, 30, 30, 3)) as target:
        network, y = captured(target, x), target.raw(x).argmax(1)
        region = Region.around(x, threat)
        with torch.no_grad():
            loose, tight = (margins(network, region, intervals(network, region, tighten=t), y) for t in (False, True))
        proven = certified(network, x, y, threat)
    assert (tight >= loose - 1e-12).all()
    assert (tight > loose + 1e-3).any()
    assert proven.tolist() == ((loose > 0).all(1) | (tight > 0).all(1)).tolist()
    assert proven.any()
    assert not certified(network, x, y, ThreatModel("Linf", 0.9)).any()


def test_certificates_and_an_exact_solver_agree() -> None:
    torch.manual_seed(2)
    x, threat = torch.rand(6, 4), ThreatModel("Linf", 0.15)
    with Target(mlp(4, 8, 8, 3, scale=3)) as target:
        network, y = captured(target, x), target.raw(x).argmax(1)
        proven, broken = certified(network, x, y, threat), 0
        for row in range(len(x)):
            region = Region.around(x[row : row + 1], threat)
            with torch.no_grad():
                found = intervals(network, region, tighten=True)
            answers = [solve(network, region, found, one, nodes=10_000) for one in differences(3, y[row : row + 1])[0]]
            examples = [answer.example for answer in answers if answer.example is not None]
            assert all(answer.none or answer.example is not None for answer in answers)
            assert not (proven[row] and examples)
            broken += bool(examples)
            for example in examples:
                assert int(network(example[None]).argmax()) != int(y[row])
    assert proven.any()
    assert broken


@pytest.mark.parametrize(("name", "call"), [("sigmoid", torch.sigmoid), ("tanh", torch.tanh)])
def test_lines_around_a_smooth_activation_enclose_it(name: str, call) -> None:
    draw, size = torch.Generator().manual_seed(0), 2000
    low = 4 * torch.randn(size, generator=draw, dtype=torch.float64)
    high = low + 10 ** (6 * torch.rand(size, generator=draw, dtype=torch.float64) - 5)
    lines = relaxation(Step(name, (0,), call, None, torch.Size([1])), low, high)
    at = low + (high - low) * torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(1)
    above, below = lines.upper * at + lines.upper_at - call(at), call(at) - lines.lower * at - lines.lower_at
    assert above.min() > -1e-12
    assert below.min() > -1e-12
    touched = (above.amin(0) < 1e-3) & (below.amin(0) < 1e-3)
    assert touched.all()


class Cancelling(nn.Module):
    """Scores that differ by 1 exactly, and in float32 by what is left of numbers near 1e8."""

    def forward(self, x: Tensor) -> Tensor:
        large = x.sum(1, keepdim=True) * 1e8
        return torch.cat([large + 1 - large, large - large], dim=1)


def test_a_margin_that_rounding_can_lose_is_not_certified() -> None:
    x = torch.rand(4, 3)
    with Target(mlp(3, 2)) as target:
        target.model.forward = Cancelling().forward  # type: ignore[method-assign]
        try:
            network = captured(target, x)
        except UnboundableError:
            return  # float32 lost it at the clean points already
        assert not certified(network, x, torch.zeros(4, dtype=torch.int64), ThreatModel("Linf", 1e-3)).any()


class _Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "branch":
            return x if x.sum() > 0 else -x
        if self.kind == "numpy":
            return torch.from_numpy(np.asarray(x.detach().numpy()) * 2.0)
        if self.kind == "gelu":
            return nn.functional.gelu(x)
        if self.kind == "product":
            return x * x
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("branch", "cannot be recorded"),
        ("numpy", "do not depend on its input|cannot be recorded"),
        ("gelu", "operation gelu"),
        ("product", "multiplies data with data"),
        ("batch", "axis of the points|answer otherwise"),
    ],
)
def test_what_has_no_bounds_is_refused_by_name(kind: str, reason: str) -> None:
    with Target(_Odd(kind)) as target, pytest.raises(UnboundableError, match=reason):
        captured(target, torch.rand(5, 3))


class _Caching(nn.Module):
    """Keeps what it last saw, as position tables are kept."""

    seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.seen is None or self.seen.shape != x.shape:
            self.seen = torch.zeros_like(x)
        return x + self.seen


def test_recording_leaves_the_model_as_it_was() -> None:
    model, x = _Caching(), torch.rand(11, 3)
    state = torch.get_rng_state()
    with Target(model) as target:
        captured(target, x)
        assert model.seen is None or type(model.seen) is Tensor
        assert torch.equal(target.raw(x), x)
    assert torch.equal(torch.get_rng_state(), state)
