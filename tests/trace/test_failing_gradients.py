"""A gradient that fails is located and, where it can be, repaired; nothing of it ends a trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit.auditing.inspection import inspect_model
from maskaudit.repairs import RepairedModel, propose, repaired_target
from maskaudit.repairs.blame import traced
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from tests.repairs.planned import repaired_attacks
from tests.trace.failing_models import FAILING, Honest, overwritten
from tests.trace.masked_models import Apply, Front, Masked
from tests.trace.test_hard_cases import source_line

Points = tuple[Tensor, Tensor]
CASES = pytest.mark.parametrize("case", FAILING, ids=lambda case: case.name)


@CASES
def test_the_failure_is_located(case: Masked, net: nn.Module, points: Points) -> None:
    target = Target(case.build(net).eval())
    with target:
        found = traced(target, *points, eps=0.2)
    culprit = found.culprits[0]
    assert (culprit.mechanism, culprit.location.module) == (case.mechanism, case.module)
    assert case.line in source_line(culprit.location)
    assert found.health.poor
    if case.mechanism == "failing-backward":
        assert target.gradient_failure


@CASES
def test_a_repaired_gradient_follows_the_model(case: Masked, net: nn.Module, points: Points) -> None:
    target = Target(case.build(net).eval())
    x, y = points
    with target:
        repairs = propose(traced(target, x, y, eps=0.2))
        assert bool(repairs) == (case.name != "refusing")  # no op of it is to blame
        if not repairs:
            return
        with repaired_target(target, repairs) as repaired:
            found = repaired.value_and_grad(x, lambda scores, rows: target.margin(scores, y[rows]))
        assert torch.equal(found.scores, target.scores(x))
        plain = Target(net).value_and_grad(x, lambda scores, rows: target.margin(scores, y[rows]))
        alike = torch.cosine_similarity(found.grad.flatten(1), plain.grad.flatten(1))
        assert float(alike.min()) > 0.9


def test_what_refuses_every_gradient_falls_to_a_learned_stand_in(net: nn.Module, points: Points) -> None:
    target = Target(FAILING[-1].build(net).eval())
    x, y = (part[:32] for part in points)
    with target:
        rng = PointRNG.create(0, "test", torch.arange(len(x)))
        attempt = repaired_attacks(target, x, y, threat=ThreatModel("Linf", 0.2), rng=rng, steps=20, targets=1)
        left = float((target.raw(attempt.examples).argmax(1) == y).double().mean())
    assert left < 0.3


def test_both_ends_of_an_overwrite_are_named(net: nn.Module, points: Points) -> None:
    with Target(Front(net, Apply(overwritten)).eval()) as target:
        culprits = traced(target, *points, eps=0.2).culprits
    lines = {source_line(culprit.location).strip() for culprit in culprits}
    assert lines == {"h = torch.exp(x)", "y = torch.log(h)", "h.sub_(1)"}


def test_custom_functions_with_a_right_backward_are_no_fault(net: nn.Module, points: Points) -> None:
    with Target(Front(net, Apply(Honest.apply)).eval()) as target:
        assert traced(target, *points, eps=0.2).culprits == ()
        assert target.gradient_failure == ""


def test_functions_are_put_back(net: nn.Module, points: Points) -> None:
    for case in FAILING[:2]:
        with Target(case.build(net).eval()) as target:
            repairs = propose(traced(target, *points, eps=0.2))
        function = case.build(net).front.function.__self__  # type: ignore[union-attr]
        before = dict(vars(function))
        with RepairedModel(case.build(net), repairs).installed():
            assert dict(vars(function)) != before
        assert dict(vars(function)) == before


def test_a_compiled_model_is_traced_as_it_was_written(net: nn.Module, points: Points) -> None:
    compiled = torch.compile(Front(net, Apply(torch.round)), backend="eager")
    with Target(compiled) as target:
        found = inspect_model(target, *points, eps=0.2)
    assert found["culprits"][0]["location"]["op"] == "round"
    with Target(torch.compile(net, backend="aot_eager")) as target:
        assert traced(target, *points, eps=0.2).culprits == ()
