"""The plan in the report: stages, what was confirmed, and documents that may hold anything."""

from __future__ import annotations

from typing import Any

import pytest

from maskaudit.report import html, plan

STAGE: dict[str, Any] = {
    "loss": "margin", "start": "random", "steps": 25, "step": 0.1, "draws": 8, "sentences": ["Read before <b>."],
    "attempted": 190, "broken": 188, "new": 5, "queries": 1234, "status": "ran", "reason": "",
}  # fmt: skip
NOTE = {"repair": "Read before <b>.", "alone": 0, "together": 188, "points": 190}


def document(*stages: Any, source: str = "trace", **note: Any) -> dict[str, Any]:
    mechanisms = [{"id": "cut", "confirmed_by": [{**NOTE, **note}]}]
    return {"plan": {"source": source, "stages": list(stages)}, "verdict": {"mechanisms": mechanisms}}


def render(view: plan.PlanView | None) -> str:
    from maskaudit.report import words

    return html.environment().get_template("plan.html").render(plan=view, words=words)


def test_stages_and_confirmations_are_shown_and_escaped() -> None:
    page = render(plan.read(document(STAGE, {**STAGE, "attempted": 0, "reason": "every point had been broken"})))
    assert "Read before &lt;b&gt;." in page
    assert "<b>" not in page
    assert (
        "Of 190 points that white-box attacks left unbroken, attacks through this repair alone broke 0, "
        "through all repairs broke 188." in page
    )
    assert "margin from a random start, 25 steps, of 0.1 ε, up to 8 draws per gradient" in page
    assert "Skipped" not in page
    assert "1 further stage and says why it met no point" in page
    assert "1,234" in page


def test_where_no_stage_met_a_point_only_the_reason_is_shown() -> None:
    page = render(plan.read(document({**STAGE, "attempted": 0, "reason": "every point had been broken"})))
    assert "Its only stage met no point: every point had been broken." in page


def test_a_single_repair_is_reported_alone() -> None:
    view = plan.read(document(STAGE, together=None, alone=12))
    assert view is not None
    assert view.confirmed[0].endswith("left unbroken, attacks through this repair alone broke 12.")


def test_white_box_stages_are_called_so_and_long_plans_are_cut() -> None:
    view = plan.read(document(*[{**STAGE, "sentences": []}] * 60, source="file"))
    assert view is not None
    assert view.given
    assert (len(view.stages), view.hidden) == (plan.MAX_STAGES, 20)
    assert view.stages[0].what == "Nothing: the attack follows the model's gradients."
    assert "20 further stages and says why each of them met no point" in render(view)


@pytest.mark.parametrize("damaged", [{}, {"plan": []}, {"plan": {"stages": "x"}}, {"plan": {"stages": [3, None]}}])
def test_nothing_planned_is_nothing_shown(damaged: dict[str, Any]) -> None:
    assert plan.read(damaged) is None
    assert render(None).strip() == ""


def test_values_of_the_wrong_kind_do_no_harm() -> None:
    wrong = {key: ["?"] for key in STAGE}
    assert plan.read({"plan": {"stages": [wrong]}, "verdict": {"mechanisms": [{"confirmed_by": [{"alone": "x"}]}]}})
