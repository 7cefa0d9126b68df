"""Cuts parallel to a live path: named where they are to blame, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskaudit.repairs.blame import improved, traced
from maskaudit.target import Target
from maskaudit.trace import Trace, trace_model

Points = tuple[Tensor, Tensor]


class _Beside(nn.Module):
    """The network cut off its input, and a weak live term that says nothing about it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def answer(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x) + 1e-3 * x.flatten(1)[:, :10]


class Detached(_Beside):
    def answer(self, x: Tensor) -> Tensor:
        return self.net(x.detach())


class InPlace(_Beside):
    def answer(self, x: Tensor) -> Tensor:
        held = x * 1.0
        held.detach_()
        return self.net(held)


class UnderNoGrad(_Beside):
    def answer(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scaled = x * 1.0
        return self.net(scaled)


class ThroughNumpy(_Beside):
    def answer(self, x: Tensor) -> Tensor:
        return self.net(torch.from_numpy(x.detach().numpy() * 1.0))


class InHalves(_Beside):
    def answer(self, x: Tensor) -> Tensor:
        upper = x[:, :, :4].detach()
        lower = x[:, :, 4:].detach()
        return self.net(torch.cat([upper, lower], dim=2))


class Normalised(_Beside):
    """Statistics taken off the graph: no fault."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / x.flatten(1).amax(dim=1).detach().view(-1, 1, 1, 1))


class StraightThrough(_Beside):
    """Rounded, with the identity as gradient."""

    def __init__(self, net: nn.Module, levels: int) -> None:
        super().__init__(net)
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + ((x * (self.levels - 1)).round() / (self.levels - 1) - x).detach())


class Randomly(_Beside):
    def answer(self, x: Tensor) -> Tensor:
        return self.net(x.detach() + 0.3 * torch.randn_like(x))


def found(model: nn.Module, points: Points) -> Trace:
    with Target(model.eval()) as target:
        return traced(target, *points, eps=0.2)


def lines(trace: Trace) -> list[str]:
    places = [culprit.location for culprit in trace.culprits if culprit.mechanism == "cut"]
    return [Path(str(p.file)).read_text().splitlines()[int(p.line or 0) - 1].strip() for p in places]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (Detached, ["return self.net(x.detach())"]),
        (InPlace, ["held.detach_()"]),
        (UnderNoGrad, ["with torch.no_grad():"]),
        (ThroughNumpy, ["return self.net(torch.from_numpy(x.detach().numpy() * 1.0))"]),
        (InHalves, ["upper = x[:, :, :4].detach()", "lower = x[:, :, 4:].detach()"]),
    ],
)
def test_a_cut_beside_a_weak_path_is_named(
    build: type[nn.Module], expected: list[str], net: nn.Module, points: Points
) -> None:
    trace = found(build(net), points)
    assert lines(trace) == expected
    assert all("only with the cut repaired" in culprit.sentence for culprit in trace.culprits)


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_an_honest_straight_through_estimator_is_not_blamed(levels: int, net: nn.Module, points: Points) -> None:
    assert found(StraightThrough(net, levels), points).culprits == ()


def test_statistics_off_the_graph_are_not_blamed(net: nn.Module, points: Points) -> None:
    assert found(Normalised(net), points).culprits == ()


def test_a_healthy_model_costs_no_further_pass(net: nn.Module, points: Points) -> None:
    with Target(net.eval()) as target:
        trace_model(target, *points, eps=0.2)
        before = target.ledger.forwards
        traced(target, *points, eps=0.2)
        assert target.ledger.forwards == 2 * before


def test_nothing_is_tried_on_a_random_model(net: nn.Module, points: Points) -> None:
    trace = found(Randomly(net), points)
    assert trace.randomness is not None
    assert lines(trace) == []


def test_model_and_random_state_are_left_as_they_were(net: nn.Module, points: Points) -> None:
    model = Detached(net).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found(model, points)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [(0.0, 0.95, True), (0.82, 0.88, True), (0.86, 0.88, False), (0.9, 0.99, False), (0.0, 0.86, False)],
)
def test_an_agreement_is_repaired_only_beyond_chance(before: float, now: float, expected: bool) -> None:
    assert improved(before, now) is expected
