"""The adaptive attack inside an audit: plan in the report, confirmed mechanisms, plan files, healthy models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch import nn

from maskaudit import api
from maskaudit.auditing.runner import Audit
from maskaudit.cli import cli
from maskaudit.command.output import write_outputs
from maskaudit.errors import InputError, UsageError
from maskaudit.loading import LoadedModel
from maskaudit.repairs.plan_file import parse_plan, plan_document
from maskaudit.settings import AuditSettings
from maskaudit.zoo.masks import inputs, outputs
from maskaudit.zoo.planted import HiddenCorner

#: The plan is what is tested; of the challengers the cheapest stays, so that there are candidates to start from.
LEFT_OUT = ("transfer", "decision", "square", "finite-differences", "torchattacks-pgd", "torchattacks-square")
FAST = AuditSettings(budget="quick", samples=40, ignore=LEFT_OUT)


def audited(model: nn.Module, **changes: Any) -> Audit:
    return api.audit(model.eval(), settings=dataclasses.replace(FAST, **changes))


def network(loaded: LoadedModel) -> nn.Module:
    assert isinstance(loaded.module, nn.Module)
    return loaded.module


def outcomes(audit: Audit) -> dict[str, Any]:
    """What a rerun must repeat: figures per attack, per point and per stage, without times."""
    document = audit.report.to_dict()
    dropped = {"seconds", "forwards", "backwards"}
    return {
        "attacks": [{k: v for k, v in row.items() if k not in dropped} for row in document["attacks"]],
        "stages": [{k: v for k, v in row.items() if k not in dropped} for row in document["plan"]["stages"]],
        "points": document["points"],
        "verdict": document["verdict"],
    }


@pytest.fixture(scope="module")
def doubly_masked(standard: LoadedModel) -> Audit:
    return audited(outputs.SharpSoftmax(inputs.QuantisedInput(network(standard), 4), 100.0))


@pytest.mark.heavy
def test_the_plan_that_ran_is_in_the_report(doubly_masked: Audit) -> None:
    document = doubly_masked.report.to_dict()
    stages = document["plan"]["stages"]
    assert document["plan"]["source"] == "trace"
    rows = {row["name"]: row for row in document["attacks"]}
    for name in ("adaptive-ce", "adaptive", "repaired"):
        mine = [stage for stage in stages if stage["row"] == name]
        assert sum(stage["queries"] for stage in mine) == rows[name]["queries"]
        assert sum(stage["forwards"] for stage in mine) == rows[name]["forwards"]
        assert max(stage["broken"] for stage in mine) <= rows[name]["broken"]
    assert {rows[name]["role"] for name in ("adaptive-ce", "adaptive")} == {"strong"}
    assert rows["repaired"]["role"] == "repaired"
    skipped = [stage for stage in stages if stage["attempted"] == 0]
    assert all(stage["status"] == "skipped" and stage["reason"] for stage in skipped)


def test_two_mechanisms_are_confirmed_alone_and_together(doubly_masked: Audit) -> None:
    mechanisms = {m.id: m for m in doubly_masked.report.verdict.mechanisms}
    (quantiser,) = mechanisms["shattered"].confirmed_by
    assert quantiser.points > 20
    assert quantiser.alone is not None
    assert quantiser.together is not None
    assert quantiser.alone < 0.5 * quantiser.points
    assert quantiser.together > 0.9 * quantiser.points


def test_one_mechanism_is_confirmed_by_its_repair(standard: LoadedModel) -> None:
    audit = audited(inputs.QuantisedInput(network(standard), 4))
    (note,) = audit.report.verdict.mechanisms[0].confirmed_by
    assert note.together is None
    assert note.alone == note.points > 20


@pytest.mark.heavy
def test_a_saved_plan_gives_the_same_result(doubly_masked: Audit, standard: LoadedModel, tmp_path: Path) -> None:
    write_outputs([("plan", tmp_path / "plan.json")], doubly_masked.report.to_dict(), None)
    plan = parse_plan(json.loads((tmp_path / "plan.json").read_text()))
    again = audited(outputs.SharpSoftmax(inputs.QuantisedInput(network(standard), 4), 100.0), plan=plan)
    assert outcomes(again) == outcomes(doubly_masked)
    assert again.report.plan["source"] == "file"
    assert plan_document(again.report.to_dict()) == plan_document(doubly_masked.report.to_dict())


@pytest.mark.heavy
def test_a_given_plan_runs_exactly(pgd_trained: LoadedModel) -> None:
    """A white-box stage on a healthy model: booked for G*, and nothing else runs."""
    plan = parse_plan({"plan_version": 1, "stages": [{"loss": "margin", "start": "clean", "steps": 3, "step": 0.5}]})
    audit = audited(network(pgd_trained), plan=plan)
    (stage,) = audit.report.plan["stages"]
    rows = {row.name: row for row in audit.report.attacks}
    assert stage["row"] == "adaptive"
    assert rows["adaptive"].role == "strong"
    assert rows["repaired"].status == "skipped"
    assert stage["queries"] <= 4 * stage["attempted"]


def test_a_plan_for_another_model_is_refused(standard: LoadedModel) -> None:
    repair = {"remedy": "straight-through", "module": "front", "op": "round"}
    plan = parse_plan({"plan_version": 1, "stages": [{"loss": "margin", "repairs": [repair]}]})
    with pytest.raises(UsageError, match="'round' in module 'front'"):
        audited(network(standard), plan=plan)


@pytest.mark.parametrize("content", ['{"plan_version": 1}', "no json", '{"plan_version": 1, "stages": [{"loss": 1}]}'])
def test_the_command_line_refuses_what_is_no_plan(content: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    result = CliRunner().invoke(cli, ["check", "zoo:standard", "--plan", str(path)])
    assert isinstance(result.exception, InputError)
    assert str(path) in str(result.exception)


@pytest.mark.heavy
def test_healthy_models_get_a_short_look_behind_dormant_units(standard: LoadedModel, pgd_trained: LoadedModel) -> None:
    """Both have such units; nothing waits behind them, so nothing is named, and places are not distinguished."""
    for model in (standard, pgd_trained):
        audit = audited(network(model))
        stages = audit.report.plan["stages"]
        assert {repair["remedy"] for stage in stages for repair in stage["repairs"]} == {"open"}
        unbroken = max(stage["attempted"] for stage in stages)
        assert sum(stage["forwards"] + stage["backwards"] for stage in stages) <= 70 * unbroken
        assert all(stage["attempted"] == 0 for stage in stages if stage["purpose"] == "confirm")
        assert audit.report.verdict.mechanisms == ()
        assert {row.name for row in audit.report.attacks} & {"adaptive", "adaptive-ce"} == set()


@pytest.fixture(scope="module")
def hidden_corner(pgd_trained: LoadedModel) -> Audit:
    return audited(HiddenCorner(network(pgd_trained)))


@pytest.mark.heavy
def test_a_corner_behind_a_dormant_unit_is_found_and_placed(hidden_corner: Audit) -> None:
    report = hidden_corner.report
    assert report.verdict.label == "masked"
    (mechanism,) = (m for m in report.verdict.mechanisms if m.id == "saturation")
    (place,) = mechanism.locations
    assert (place.module, place.op) == ("", "relu")
    (note,) = mechanism.confirmed_by
    assert note.alone == note.together == note.points > 5
    innocent = [s for s in report.plan["stages"] if s["purpose"] == "confirm" and s["repairs"][0]["module"] != ""]
    assert innocent
    assert all(stage["attempted"] == note.points and stage["broken"] == 0 for stage in innocent)


def test_a_saved_plan_opens_the_same_units(hidden_corner: Audit, pgd_trained: LoadedModel) -> None:
    plan = parse_plan(plan_document(hidden_corner.report.to_dict()))
    assert outcomes(audited(HiddenCorner(network(pgd_trained)), plan=plan)) == outcomes(hidden_corner)
