"""The sample reports name only what the product has, so that tests of the renderers see what users see."""

from __future__ import annotations

import pytest

from maskaudit.attacks.registry import UNBOUNDED, battery
from maskaudit.attacks.second_opinion import second_opinions
from maskaudit.probes import PROBES
from maskaudit.repairs.stage_rows import plan_specs
from maskaudit.results import AuditReport
from maskaudit.settings import BUDGETS
from maskaudit.verdict.limits import LIMITS, SCREEN
from maskaudit.verdict.mechanisms import TITLES

from . import sample

BUDGET = BUDGETS["standard"]
ATTACKS = {
    spec.name: spec
    for spec in (UNBOUNDED, *battery(BUDGET), *plan_specs(BUDGET.steps, BUDGET.targets), *second_opinions("Linf"))
}

each_sample = pytest.mark.parametrize("report", [sample.masked(), sample.clear()], ids=["masked", "clear"])


@each_sample
def test_probes_are_registered_and_graded_as_they_are(report: AuditReport) -> None:
    probes = {probe.rule: probe for probe in PROBES}
    assert len({result.rule for result in report.probes}) == len(report.probes) > 0
    for result in report.probes:
        assert result.title == probes[result.rule].title, result.rule
        assert set(result.sources) <= set(probes[result.rule].sources), result.rule
        assert result.threshold in (None, LIMITS[result.rule].value if result.rule in LIMITS else None), result.rule
        if result.status in ("pass", "finding") and result.threshold is not None and result.value is not None:
            exceeded = LIMITS[result.rule].exceeded(result.value, result.low)
            assert (result.status == "finding") == exceeded, result.rule


@each_sample
def test_attacks_are_registered_with_their_kind_and_role(report: AuditReport) -> None:
    assert len({row.name for row in report.attacks}) == len(report.attacks) > 0
    for row in report.attacks:
        spec = ATTACKS[row.name]
        assert (row.title, row.kind, row.role, row.family if row.status == "ran" else spec.family) == (
            spec.title, spec.kind, spec.role, spec.family,
        )  # fmt: skip
        assert set(row.settings) <= set(spec.settings), row.name
        assert set(row.sources) <= set(spec.sources), row.name
        if row.status == "ran":
            assert (row.part, row.decisive) == (spec.part, spec.decisive), row.name


@each_sample
def test_what_the_other_sections_name_is_registered_too(report: AuditReport) -> None:
    ran = {row.name for row in report.attacks if row.status == "ran"}
    assert {name for names in report.points["broken_by"] for name in names} <= ran
    assert {strip["attack"] for strip in report.figures.get("strips", ())} <= ran
    screen = report.masking["screen"]
    assert {*screen.get("reasons", ()), *screen.get("indicators", ())} <= set(SCREEN)
    for mechanism in report.verdict.mechanisms:
        assert mechanism.title == TITLES[mechanism.id]


def test_every_role_of_an_ordinary_audit_is_there() -> None:
    roles = {row.role for row in sample.masked().attacks}
    assert roles == {spec.role for spec in ATTACKS.values()} - {"exact"}
