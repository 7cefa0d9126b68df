"""Repairs keep every forward value and leave the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit.repairs import Repair, RepairedModel, fallbacks, propose, repair_sets, repaired_target
from maskaudit.repairs.graft import graft
from maskaudit.results import Location
from maskaudit.target import Target
from maskaudit.target.scores import detect_outputs
from maskaudit.trace import trace_model
from maskaudit.zoo.masks import inputs, outputs
from tests.trace import masked_models as zoo
from tests.trace.masked_models import HEALTHY, MASKED, Masked

Points = tuple[Tensor, Tensor]


def proposals(model: nn.Module, points: Points) -> tuple[tuple[Repair, ...], ...]:
    target = Target(model)
    with target:
        target.outputs = detect_outputs(target.raw(points[0]))
        trace = trace_model(target, *points, eps=0.2)
        return repair_sets(propose(trace), fallbacks(trace))


@pytest.mark.parametrize("case", MASKED, ids=lambda case: case.name)
def test_forward_values_are_bit_identical(case: Masked, net: nn.Module, points: Points) -> None:
    model = case.build(net).eval()
    sets = proposals(model, points)
    assert sets
    plain = model(points[0]).detach()
    for chosen in sets:
        repaired = RepairedModel(model, chosen)
        with repaired.installed():
            output = repaired(points[0].clone().requires_grad_(True))
            assert output.dtype == plain.dtype
            assert torch.equal(output.detach(), plain)


@pytest.mark.parametrize(("name", "build"), HEALTHY, ids=[name for name, _ in HEALTHY])
def test_nothing_is_proposed_for_healthy_models(name: str, build: object, net: nn.Module, points: Points) -> None:
    assert proposals(build(net).eval(), points) == ()  # type: ignore[operator]


def test_straight_through_gives_the_gradient_of_the_rest(net: nn.Module, points: Points) -> None:
    model = inputs.QuantisedInput(net, 4).eval()
    x = points[0].clone().requires_grad_(True)
    repaired = RepairedModel(model, proposals(model, points)[0])
    with repaired.installed():
        (grad,) = torch.autograd.grad(repaired(x).sum(), x)
    rounded = (torch.round(points[0] * 3) / 3).requires_grad_(True)
    (expected,) = torch.autograd.grad(net(rounded).sum(), rounded)
    torch.testing.assert_close(grad, expected)


def test_custom_functions_get_their_backward_back(net: nn.Module, points: Points) -> None:
    model = zoo.Front(net, zoo.Apply(lambda h: zoo.Scrambled.apply(h))).eval()
    original = zoo.Scrambled.__dict__["backward"]
    repaired = RepairedModel(model, proposals(model, points)[0])

    def fail() -> None:
        with repaired.installed():
            repaired(points[0].clone().requires_grad_(True))
            assert zoo.Scrambled.__dict__["backward"] is not original
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert zoo.Scrambled.__dict__["backward"] is original


def test_boundary_is_the_identity(net: nn.Module, points: Points) -> None:
    model = zoo.Front(net, zoo.NumpyQuantiser()).eval()
    repair = Repair("boundary", Location("front", "module"), "cut", "")
    target = Target(model)
    with repaired_target(target, [repair]) as repaired:
        result = repaired.value_and_grad(points[0], lambda s, rows: s[:, 0])
    inner = Target(net).value_and_grad(zoo.NumpyQuantiser()(points[0]), lambda s, rows: s[:, 0])
    torch.testing.assert_close(result.grad, inner.grad)
    assert torch.equal(result.scores, target.scores(points[0]))


def test_taps_decide_alike_and_passes_are_counted(net: nn.Module, points: Points) -> None:
    model = outputs.SharpSoftmax(net, 50.0).eval()
    target = Target(model, outputs="probabilities")
    chosen = proposals(model, points)[0]
    before = target.ledger.copy()
    with repaired_target(target, chosen) as repaired:
        result = repaired.value_and_grad(points[0], lambda s, rows: target.margin(s, points[1][rows]))
    assert torch.equal(result.scores.argmax(1), target.raw(points[0]).argmax(1))
    assert bool((result.grad.flatten(1) != 0).any(dim=1).all())
    assert target.ledger.since(before).backwards == len(points[0])


def test_graft_keeps_bits_and_sends_the_gradient_elsewhere() -> None:
    value = torch.tensor([-0.0, torch.inf, torch.nan, 1.0])
    source = torch.ones(4, requires_grad=True)
    result = graft(value, source)
    assert torch.equal(result.detach().view(torch.int32), value.view(torch.int32))
    result.backward(torch.arange(4.0))
    assert torch.equal(source.grad if source.grad is not None else torch.empty(0), torch.arange(4.0))
    with pytest.raises(ValueError, match="equal shapes"):
        graft(value, torch.ones(3))
