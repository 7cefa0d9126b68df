"""Plans: read strictly, written so that they are read again as they were, found again on a fresh trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from maskaudit.errors import InputError, UsageError
from maskaudit.repairs import Plan, Stage, make_plan
from maskaudit.repairs.plan_file import MAX_BYTES, parse_plan, plan_document, read_plan
from maskaudit.repairs.propose import resolve
from maskaudit.target import Target
from maskaudit.target.scores import detect_outputs
from maskaudit.trace import Trace, trace_model
from maskaudit.zoo.masks import inputs, outputs
from tests.trace.masked_models import HEALTHY

Points = tuple[Tensor, Tensor]
REPAIR = {"remedy": "straight-through", "module": "front", "op": "round", "line": 12, "scale": 1.0}


def traced(model: nn.Module, points: Points) -> Trace:
    target = Target(model.eval())
    with target:
        target.outputs = detect_outputs(target.raw(points[0]))
        return trace_model(target, *points, eps=0.2)


def document(**stage: Any) -> dict[str, Any]:
    return {"plan_version": 1, "stages": [{"loss": "margin", **stage}]}


def test_a_minimal_stage_has_the_usual_settings() -> None:
    assert parse_plan(document()).stages == (Stage(),)


def test_every_field_is_read() -> None:
    stage = parse_plan(
        document(repairs=[REPAIR], start="challenger", steps=7, step=0.25, restarts=2, targets=3, draws=4,
                 purpose="confirm")
    ).stages[0]  # fmt: skip
    assert (stage.start, stage.steps, stage.step, stage.restarts) == ("challenger", 7, 0.25, 2)
    assert (stage.targets, stage.draws, stage.purpose) == (3, 4, "confirm")
    repair = stage.repairs[0]
    assert (repair.remedy, repair.location.module, repair.location.op) == ("straight-through", "front", "round")
    assert (repair.location.line, repair.scale) == (12, 1.0)


COSTLY = {"loss": "targeted-margin", "steps": 1000, "restarts": 10, "targets": 10}
MANY = [{"loss": "margin", "repairs": [{**REPAIR, "line": 300 * n + i + 1} for i in range(300)]} for n in range(3)]

REFUSED: tuple[tuple[Any, str], ...] = (
    ({"plan_version": 1, "stages": [COSTLY] * 21}, "2100000 gradient steps per point in all; the limit is 2000000"),
    ({"plan_version": 1, "stages": MANY}, "900 different repairs in all; the limit is 600"),
    ([], "must be an object with the fields plan_version, stages; found a list"),
    ({"stages": []}, "plan_version is missing"),
    ({"plan_version": 2, "stages": []}, "plan_version must be a whole number from 1 to 1; found 2"),
    ({"plan_version": True, "stages": []}, "plan_version must be a whole number from 1 to 1; found true"),
    ({"plan_version": 1, "stages": {}}, "stages must be a list of 0 to 300 entries; found an object"),
    (
        {"plan_version": 1, "stages": [{"loss": "margin"}] * 301},
        "list of 0 to 300 entries; found a list of 301",
    ),
    ({"plan_version": 1, "stages": [], "note": 1}, "note is not a known field"),
    ({"plan_version": 1, "stages": ["margin"]}, "stages[0] must be an object with the fields"),
    ({"plan_version": 1, "stages": [{}]}, "stages[0].loss is missing"),
    (document(loss="hinge"), "loss must be one of ce, margin"),
    (document(loss=3), "loss must be one of"),
    (document(start="cold"), "start must be one of"),
    (document(purpose="fun"), "purpose must be one of"),
    (document(steps=0), "steps must be a whole number from 1"),
    (document(steps=2.0), "steps must be a whole number"),
    (document(steps=True), "steps must be a whole number from 1 to 100000; found true"),
    (document(steps=10**30), "steps must be a whole number"),
    (document(step=0), "step must be a number above 0"),
    (document(step="0.1"), "step must be a number above 0"),
    (document(restarts=-1), "restarts must be"),
    (document(draws=5000), "draws must be"),
    (document(speed=1), "speed is not a known field"),
    (document(repairs=[{**REPAIR, "remedy": "none"}]), "repairs[0].remedy must be one of"),
    (document(repairs=[{**REPAIR, "remedy": "__import__"}]), "remedy must be one of"),
    (document(repairs=[{**REPAIR, "module": 1}]), "module must be a text"),
    (document(repairs=[{**REPAIR, "op": "x" * 2000}]), "at most 1000 characters"),
    (document(repairs=[{**REPAIR, "line": "12"}]), "line must be a whole number"),
    (document(repairs=[{**REPAIR, "scale": 0}]), "scale must be a number above 0"),
    (document(repairs=[{**REPAIR, "scale": 10**400}]), "scale must be a number above 0"),
    (document(repairs=[{"remedy": "tap", "module": ""}]), "op is missing"),
)


@pytest.mark.parametrize(("given", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_is_told_in_one_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        parse_plan(given)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"plan_version": NaN}', "NaN is not a number"),
        (b"[" * 100_000, "not valid JSON"),
        (b" " * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_files_that_are_no_plans(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_plan(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_plan(tmp_path / "none.json")


def test_a_plan_is_found_again_on_a_fresh_trace(net: nn.Module, points: Points) -> None:
    model = outputs.SharpSoftmax(inputs.QuantisedInput(net, 4), 100.0)
    plan = make_plan(traced(model, points), steps=5, targets=2)
    again = parse_plan(json.loads(json.dumps(plan.to_dict())))
    trace = traced(model, points)
    for repair, original in zip(again.repairs, plan.repairs, strict=True):
        assert resolve(repair, trace) == original
    assert plan_document({"plan": {**plan.to_dict(), "source": "trace"}}) == plan.to_dict()


def test_a_repair_of_the_experts_own_choice(net: nn.Module, points: Points) -> None:
    """Nothing is wrong with this op, but the plan wants it repaired; what the model lacks is refused."""
    trace = traced(net, points)
    op = next(op.location for op in trace.ops if op.location.op == "relu")
    wanted = {"remedy": "soften", "module": op.module, "op": "relu", "scale": 2.0}
    (repair,) = parse_plan(document(repairs=[wanted])).repairs
    found = resolve(repair, trace)
    assert (found.location, found.scale, found.by_node) == (op, 2.0, False)
    (missing,) = parse_plan(document(repairs=[{**REPAIR, "module": "absent"}])).repairs
    with pytest.raises(UsageError, match="'round' in module 'absent', line 12"):
        resolve(missing, trace)


@pytest.mark.parametrize(("name", "build"), HEALTHY, ids=[name for name, _ in HEALTHY])
def test_healthy_models_get_no_stage(name: str, build: Any, net: nn.Module, points: Points) -> None:
    """An honest straight-through estimator is at odds with differences: nothing is blamed, but more is searched."""
    plan = make_plan(traced(build(net), points), steps=50, targets=3)
    if name.startswith("ste"):
        assert {repair.remedy for repair in plan.repairs} <= {"carry", "prefix", "stand-in"}
    else:
        assert plan == Plan()


def test_white_box_attacks_never_count_as_repaired(net: nn.Module, points: Points) -> None:
    trace = traced(inputs.QuantisedInput(net, 4), points)
    stages = make_plan(trace, steps=50, targets=3).stages
    assert {bool(stage.repairs) for stage in stages if stage.row == "repaired"} == {True}
    assert {stage.row for stage in stages if not stage.repairs} == {"adaptive", "adaptive-ce"}
    effort = {row: sum(s.cost for s in stages if s.row == row) for row in ("adaptive", "adaptive-ce")}
    assert effort["adaptive"] == effort["adaptive-ce"] > 0
    starts = {row: [s.start for s in stages if s.row == row] for row in ("adaptive", "adaptive-ce")}
    assert starts["adaptive"] == starts["adaptive-ce"]


def test_two_repairs_are_tried_alone_and_together(net: nn.Module, points: Points) -> None:
    model = outputs.SharpSoftmax(inputs.QuantisedInput(net, 4), 100.0)
    stages = [s for s in make_plan(traced(model, points), steps=5, targets=2).stages if s.repairs]
    assert len(stages[0].repairs) == 2
    assert [s.repairs for s in stages if s.purpose == "confirm"] == [(repair,) for repair in stages[0].repairs]


def test_stage_order_is_cheapest_first_within_a_set(net: nn.Module, points: Points) -> None:
    stages = make_plan(traced(inputs.QuantisedInput(net, 4), points), steps=5, targets=3).stages
    repaired = [s for s in stages if s.repairs and s.start == "random"]
    by_set: dict[Any, list[int]] = {}
    for stage in repaired:
        by_set.setdefault(stage.repairs, []).append(stage.cost)
    assert all(costs == sorted(costs) for costs in by_set.values())
