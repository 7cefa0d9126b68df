"""Repairs of the hard cases: values bit-identical, the model untouched, and the robustness gone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskaudit.repairs import RepairedModel, make_plan
from maskaudit.repairs.stages import StandIns
from maskaudit.rng import PointRNG
from maskaudit.target import Target
from maskaudit.target.scores import detect_outputs
from maskaudit.threat import ThreatModel
from maskaudit.trace import trace_model
from tests.repairs.hard_models import HARD, FlatStairs, Hard
from tests.repairs.planned import repaired_attacks

pytestmark = pytest.mark.heavy

LINF = ThreatModel("Linf", 0.2)
Points = tuple[Tensor, Tensor]


def opened(case: Hard, net: nn.Module, points: Points) -> tuple[Target, Tensor, Tensor]:
    x, y = points
    target = Target(case.build(net).eval())
    target.outputs = detect_outputs(target.raw(x))
    right = target.raw(x).argmax(1) == y
    return target, x[right][:48], y[right][:48]


@pytest.mark.parametrize("case", HARD, ids=lambda case: case.name)
def test_hard_models_fall(case: Hard, net: nn.Module, points: Points) -> None:
    target, x, y = opened(case, net, points)
    assert len(x) > 30
    with target:
        rng = PointRNG.create(0, "test", torch.arange(len(x)))
        attempt = repaired_attacks(target, x, y, threat=LINF, rng=rng, steps=20, targets=1)
        assert bool(LINF.admissible(attempt.examples, x).all())
        left = float((target.raw(attempt.examples).argmax(1) == y).double().mean())
    assert left <= case.left


@pytest.mark.parametrize("case", HARD, ids=lambda case: case.name)
def test_every_planned_repair_keeps_the_values(case: Hard, net: nn.Module, points: Points) -> None:
    target, x, y = opened(case, net, points)
    model = target.model
    before = {name: value.clone() for name, value in model.state_dict().items()}  # type: ignore[union-attr]
    with target:
        trace = trace_model(target, x, y, eps=0.2)
        sets = dict.fromkeys(s.repairs for s in make_plan(trace, steps=5, targets=1).stages if s.repairs)
        assert sets
        stand_ins = StandIns(target, x[:8], threat=LINF, seed=0)
        plain = target.raw(x)
        for chosen in sets:
            repaired = RepairedModel(model, chosen, stand_ins.learnt(chosen).stand_ins)
            with repaired.installed():
                output = repaired(x.clone().requires_grad_(True))
                assert torch.equal(output.detach().clone().float(), plain), chosen
    after = model.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())  # type: ignore[union-attr]
    assert FlatStairs.__dict__["backward"].__func__.__qualname__ == "FlatStairs.backward"
    assert FlatStairs.__dict__["forward"].__func__.__qualname__ == "FlatStairs.forward"
