"""Dormant units: a corner that only an open unit leads to is found, forward values stay, healthy networks hide nothing.

The trap has a closed form. All points have Σ uᵢxᵢ near 0, u = ±1 alternating; the unit fires above 0.75 · dε, the
corner x + εu reaches dε, and no other corner that the rest of the network asks for reaches anything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.repairs import Repair, RepairedModel, Stage
from maskaudit.repairs.dormant import dormant_units
from maskaudit.repairs.planner import make_plan
from maskaudit.repairs.propose import openings, resolve
from maskaudit.repairs.stages import StandIns, run_stage
from maskaudit.rng import PointRNG
from maskaudit.settings.plan import Plan
from maskaudit.target import Target
from maskaudit.threat import ThreatModel
from maskaudit.trace import trace_model

LINF = ThreatModel("Linf", 0.2)
PIXELS = 16
#: Direction of the corner, and one at right angles to it that the open part of the network follows.
CORNER = torch.tensor([1.0, -1.0]).repeat(PIXELS // 2)
OPEN = 0.02 * torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(PIXELS // 4)
FIRES_ABOVE = 0.75 * PIXELS * LINF.eps
GAIN = 5.0

Gate = Callable[[Tensor], Tensor]
Points = tuple[Tensor, Tensor]


class Trap(nn.Module):
    """Two classes; class 0 leads by about 1 everywhere but where the gate opens."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        unit = self.gate(x @ CORNER[:, None] - FIRES_ABOVE)
        return torch.cat([1.0 - x @ OPEN[:, None], GAIN * unit], dim=1)


GATES: dict[str, Gate] = {
    "relu": F.relu,
    "module": nn.ReLU(),
    "in-place": nn.ReLU(inplace=True),
    "relu_": lambda u: torch.relu_(u + 0.0),
    "relu6": F.relu6,
    "clamp": lambda u: u.clamp(min=0),
    "clamp-tensor": lambda u: torch.clamp(u, min=torch.zeros(1)),
    "clamp_min": lambda u: u.clamp_min(0),
    "hardtanh": lambda u: F.hardtanh(u, 0.0, 10.0),
    "threshold": lambda u: F.threshold(u, 0.0, 0.0),
    "maximum": lambda u: torch.maximum(u, torch.zeros(())),
    "leaky": lambda u: F.leaky_relu(u, 1e-4),
}
CASES = pytest.mark.parametrize("gate", GATES.values(), ids=GATES.keys())


@pytest.fixture(scope="module")
def grey() -> Points:
    """Points around mid-grey, whose share of the corner's direction is far below the threshold."""
    noise = torch.rand(12, PIXELS, generator=torch.Generator().manual_seed(3))
    return 0.5 + 0.05 * noise, torch.zeros(12, dtype=torch.int64)


def attacked(target: Target, x: Tensor, y: Tensor, stage: Stage) -> Tensor:
    stand_ins = StandIns(target, x, threat=LINF, seed=0)
    rng = PointRNG.create(0, "test", torch.arange(len(x)))
    examples = run_stage(target, x, y, stage, threat=LINF, rng=rng, stand_ins=stand_ins.learnt(stage.repairs)).examples
    assert bool(LINF.admissible(examples, x).all())
    return examples


def opening(target: Target, x: Tensor) -> tuple[Repair, ...]:
    trace = trace_model(target, x, target.raw(x).argmax(1), eps=LINF.eps)
    return openings(dormant_units(target, x), trace)


def plan_of(target: Target, x: Tensor, y: Tensor) -> Plan:
    trace = trace_model(target, x, y, eps=LINF.eps)
    return make_plan(trace, steps=20, targets=1, dormant=opening(target, x))


@CASES
def test_only_an_open_unit_leads_to_the_corner(gate: Gate, grey: Points) -> None:
    x, y = grey
    with Target(Trap(gate)) as target:
        stages = [stage for stage in plan_of(target, x, y).stages if stage.opens]
        assert [stage.purpose for stage in stages] == ["attack", "attack"]
        for stage in stages:
            own = attacked(target, x, y, Stage((), stage.loss, stage.start, stage.steps, stage.step))
            assert bool((target.raw(own).argmax(1) == y).all())
            found = attacked(target, x, y, stage)
            assert bool((target.raw(found).argmax(1) != y).all())
            lead = 1.0 - found @ OPEN
            assert bool((found @ CORNER > FIRES_ABOVE + 0.9 * lead / GAIN).all())


@CASES
def test_forward_values_are_bit_identical_and_the_model_is_untouched(gate: Gate, grey: Points) -> None:
    x, _ = grey
    corner = LINF.project(x + LINF.eps * CORNER, x)
    model = Trap(copy.deepcopy(gate))
    with Target(model) as target:
        units, repairs = dormant_units(target, x), opening(target, x)
    assert units
    before = dict(vars(model))
    repaired = RepairedModel(model, repairs, dormant=units)
    for at in (x, corner):
        with repaired.installed():
            output = repaired(at.clone().requires_grad_(True))
        assert output.requires_grad
        assert torch.equal(output.detach(), model(at))
    assert vars(model) == before


def test_the_gradient_of_an_open_unit_has_its_closed_form(grey: Points) -> None:
    """Below the threshold as above it, the unit passes the same gradient: once, not twice."""
    x, _ = grey
    with Target(Trap(F.relu)) as target:
        units, repairs = dormant_units(target, x), opening(target, x)
        for at in (x, LINF.project(x + LINF.eps * CORNER, x)):
            inputs = at.clone().requires_grad_(True)
            output = RepairedModel(target.model, repairs, dormant=units)(inputs)
            (gradient,) = torch.autograd.grad(output[:, 1].sum(), inputs)
            torch.testing.assert_close(gradient, (GAIN * CORNER).expand_as(x))


def test_a_unit_that_one_point_fires_is_not_dormant(grey: Points) -> None:
    x, _ = grey
    with Target(Trap(F.relu)) as target:
        assert len(opening(target, x)) == 1
        corner = LINF.project(x[:1] + LINF.eps * CORNER, x[:1])
        target.batch_size = 5
        assert opening(target, torch.cat([x, corner])) == ()


def test_calls_on_one_line_are_told_apart(grey: Points) -> None:
    """The first call is always on, the second never: only the second is opened."""

    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            units = [F.relu(x @ CORNER[:, None] - bound) for bound in (-100.0, FIRES_ABOVE)]
            return torch.cat([1.0 - x @ OPEN[:, None], GAIN * units[1] + 0.0 * units[0]], dim=1)

    x, y = grey
    with Target(Loop()) as target:
        ((_, calls),) = dormant_units(target, x).items()
        assert [int(call.sum()) for call in calls if call is not None] == [0, 1]
        stage = Stage(opening(target, x), "margin", "clean", 2, step=2.0)
        assert bool((target.raw(attacked(target, x, y, stage)).argmax(1) != y).all())


def test_an_opening_is_found_again_from_a_plan_file(grey: Points) -> None:
    x, y = grey
    with Target(Trap(F.relu)) as target:
        (repair,) = opening(target, x)
        assert resolve(repair, trace_model(target, x, y, eps=LINF.eps)) == repair


def test_a_rectifier_that_is_shut_inside_torchscript_is_opened(grey: Points) -> None:
    x, y = grey
    scripted = torch.jit.trace(Trap(F.relu), x)  # type: ignore[no-untyped-call]
    with Target(scripted) as target:
        stage = next(stage for stage in plan_of(target, x, y).stages if stage.opens)
        assert [repair.by_node for repair in stage.repairs] == [True]
        assert bool((target.raw(attacked(target, x, y, stage)).argmax(1) != y).all())


def test_ordinary_dormant_units_lead_nowhere_new(pgd_trained: object, points: Points) -> None:
    """A PGD-trained network has many of them, and what opening them breaks is broken by a white-box attack as well."""
    x, y = points
    with Target(pgd_trained.module) as target:  # type: ignore[attr-defined]
        right = target.raw(x).argmax(1) == y
        x, y = x[right], y[right]
        plan = plan_of(target, x, y)
        assert plan.stages
        assert all(stage.opens for stage in plan.stages)
        (stage,) = (s for s in plan.stages if s.purpose == "attack" and s.step is None)
        opened = target.raw(attacked(target, x, y, stage)).argmax(1) != y
        own = target.raw(attacked(target, x, y, Stage((), "margin", steps=50, restarts=2))).argmax(1) != y
    assert int((opened & ~own).sum()) <= 0.05 * len(x)
