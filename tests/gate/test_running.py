"""Running the gate: one exit status, every report kept, and summaries that agree with it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from maskaudit.errors import InputError, ModelError
from maskaudit.gate import page, summary
from maskaudit.gate.config import read_config
from maskaudit.gate.merge import merged_junit, merged_sarif
from maskaudit.gate.running import GateResult, run_gate, worst
from maskaudit.settings import AuditEvent

from .stub import StubAudit, write_config

TODAY = date(2026, 11, 21)
ERRORS = {"missing": InputError("There is no model file 'missing'."), "broken": ModelError("The model raised.")}

ACCEPTED = """
[[baseline]]
rule = "maskaudit-verdict"
cause = "logit-scale"
accept_masked = true
reason = "rounding is the product"
expires = 2027-01-31

[[baseline]]
rule = "maskaudit-claim"
accept_masked = true
reason = "the paper is being corrected"
expires = 2027-01-31
"""


def gate(folder: Path, *models: str, extra: str = "", out: Path | None = None) -> GateResult:
    config = read_config(write_config(folder, *models, extra=extra))
    return run_gate(config, out=out, today=TODAY, audit=StubAudit(ERRORS))


@pytest.mark.parametrize(
    ("models", "status"),
    [
        (("clear",), 0),
        (("suspect",), 0),
        (("clear", "masked"), 1),
        (("masked-unclaimed", "inconclusive"), 1),
        (("clear", "inconclusive"), 3),
        (("clear", "missing"), 2),
        (("missing", "masked"), 2),
        (("missing", "broken", "masked"), 4),
        (("late", "masked"), 4),
    ],
)
def test_the_status_is_that_of_the_worst_model(models: tuple[str, ...], status: int, tmp_path: Path) -> None:
    result = gate(tmp_path, *models)
    assert result.status == status
    assert summary.build(result)["status"] == status
    tree = ElementTree.fromstring(merged_junit(result))
    assert (int(tree.get("failures", "")) + int(tree.get("errors", "")) > 0) == (status != 0)


def test_order_of_statuses() -> None:
    assert [worst(pair) for pair in ((4, 1), (1, 3), (3, 0), (2, 1), (2, 4), ())] == [4, 1, 3, 2, 4, 0]


def test_fail_on_decides_per_model(tmp_path: Path) -> None:
    extra = (
        '[[models]]\nmodel = "suspect"\nfail_on = "suspect"\n'
        '[[models]]\nmodel = "masked"\nfail_on = "never"\n[[models]]\nmodel = "inconclusive"\nfail_on = "never"\n'
    )
    assert [outcome.status for outcome in gate(tmp_path, extra=extra).outcomes] == [1, 0, 0]


def test_one_model_that_cannot_be_loaded_costs_no_other_its_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = gate(tmp_path, "missing", "masked", "broken", "late", out=out)
    assert sorted(path.name for path in out.iterdir()) == ["late", "masked"]
    for folder in out.iterdir():
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["audit.json", "evidence.safetensors", "plan.json", "report.html", "summary.md"]
    assert result.outcomes[0].error == "There is no model file 'missing'."
    assert [outcome.folder for outcome in result.outcomes] == [None, "masked", None, "late"]


def test_paths_are_relative_to_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    config = read_config(write_config(tmp_path / "deep", "clear"))
    monkeypatch.chdir(tmp_path)
    places: list[Path] = []
    run_gate(config, audit=StubAudit(), on_event=lambda event: places.append(Path.cwd()))
    assert set(places) == {tmp_path / "deep"}
    assert Path.cwd() == tmp_path


def test_progress_names_the_models(tmp_path: Path) -> None:
    events: list[AuditEvent] = []
    run_gate(read_config(write_config(tmp_path, "clear", "masked")), audit=StubAudit(), on_event=events.append)
    assert [event.step for event in events] == ["clear (1 of 2)", "clear", "masked (2 of 2)", "masked"]
    assert events[-1].outcome == "masked, status 1"


def test_accepted_on_purpose_passes_and_says_so(tmp_path: Path) -> None:
    result = gate(tmp_path, "masked", extra=ACCEPTED)
    assert result.status == 0
    data = summary.build(result)
    assert data["verdict"] == "masked", "the verdict itself stays"
    text = summary.text(data)
    assert "masked" in text
    assert "accepted by baseline 1 until 2027-01-31: rounding is the product" in text
    (run,) = json.loads(merged_sarif(result))["runs"]
    assert not {item["ruleId"] for item in run["results"]} & {"maskaudit-verdict", "maskaudit-claim"}
    cases = {case.get("name"): case for case in ElementTree.fromstring(merged_junit(result)).iter("testcase")}
    skipped = cases["verdict"].find("skipped")
    assert skipped is not None
    assert "rounding is the product" in (skipped.get("message") or "")
    assert not list(ElementTree.fromstring(merged_junit(result)).iter("failure"))


def test_an_accepted_verdict_leaves_a_refuted_claim_a_failure(tmp_path: Path) -> None:
    result = gate(tmp_path, "masked", extra=ACCEPTED.partition('[[baseline]]\nrule = "maskaudit-claim"')[0])
    assert result.status == 1
    failed = [case.get("name") for case in ElementTree.fromstring(merged_junit(result)).iter("testcase") if len(case)
              and case[0].tag == "failure"]  # fmt: skip
    assert failed == ["claim"]


def test_notes_name_expired_and_idle_baselines(tmp_path: Path) -> None:
    extra = "".join(
        f'[[baseline]]\nrule = "{rule}"\nreason = "r"\nexpires = {day}\n'
        for rule, day in (
            ("unbounded-attack", "2026-01-01"),
            ("low-gradient-curvature", "2027-01-01"),
            ("noise", "2026-01-01"),
        )
    )
    notes = gate(tmp_path, "masked", extra=extra).notes
    assert len(notes) == 3
    assert "masked: baseline 1 (unbounded-attack) expired on 2026-01-01 and suppresses nothing" in notes[0]
    assert "baseline 2 (low-gradient-curvature) matches nothing that was found: remove it" in notes[1]
    assert "baseline 3 (noise) expired on 2026-01-01 and matches nothing" in notes[2]
    unknown = gate(tmp_path, "missing", extra=extra).notes
    assert not any("low-gradient-curvature" in note for note in unknown), "what the model would have shown is unknown"


@pytest.fixture
def mixed(tmp_path: Path) -> GateResult:
    return gate(tmp_path, "masked", "clear", "missing", "late", "inconclusive")


def test_the_table_fits_and_tells(mixed: GateResult) -> None:
    text = summary.text(summary.build(mixed))
    lines = text.splitlines()
    assert max(map(len, lines)) <= summary.WIDTH
    assert lines[2].split()[0] == "masked"
    assert "70.0% refuted" in lines[2]
    assert lines[2].endswith("FAIL")
    assert lines[4].endswith("NOT AUDITED")
    assert lines[5].endswith("MODEL FAILED")
    assert "missing: There is no model file 'missing'." in text
    assert lines[-1] == "1 of 5 models pass; exit status 4"
    assert "\x1b" not in text
    assert "\x1b[31m" in summary.text(summary.build(mixed), color=True)


def test_long_and_hostile_names(tmp_path: Path) -> None:
    evil = "a<b>|`x`\\u001b[31m \\u202e @team [x](http://e.example) " + 60 * "z"
    extra = f'[[models]]\nmodel = "masked"\nname = "{evil}"\n'
    result = gate(tmp_path, extra=extra, out=tmp_path / "out")
    assert [path.parent for path in (tmp_path / "out").iterdir()] == [tmp_path / "out"]
    data = summary.build(result)
    text, markdown, html = summary.text(data), summary.markdown(data), page.html(data)
    assert max(map(len, text.splitlines())) <= summary.WIDTH
    for shown in (text, markdown, html):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
    for shown in (markdown, html):
        assert "<b>" not in shown
    assert "](" not in markdown
    row = next(line for line in markdown.splitlines() if "FAIL" in line)
    assert row.count("|") == len(summary.HEADER) + 1
    assert "<script" not in html
    ElementTree.fromstring(merged_junit(result))


def test_the_page_needs_nothing_from_elsewhere(mixed: GateResult) -> None:
    html = page.html(summary.build(mixed))
    assert "http" not in html
    assert "<script" not in html
    assert html.count("<tr>") == 6


def test_the_page_links_the_reports_that_are_kept(tmp_path: Path) -> None:
    html = page.html(summary.build(gate(tmp_path, "clear", "missing", out=tmp_path / "out")))
    assert 'href="clear/report.html"' in html
    assert html.count("href=") == 1


def test_the_summary_is_plain_json(mixed: GateResult) -> None:
    data: dict[str, Any] = summary.build(mixed)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["verdict"] == "masked"
    assert [model["status"] for model in data["models"]] == [1, 0, 2, 4, 3]
    findings = data["models"][0]["findings"]
    assert {"rule", "module", "op", "cause", "accepted"} <= set(findings[0])


def test_sarif_has_one_category_per_model(mixed: GateResult) -> None:
    runs = json.loads(merged_sarif(mixed))["runs"]
    assert [run["automationDetails"]["id"] for run in runs] == [
        f"maskaudit/{name}/" for name in ("masked", "clear", "missing", "late", "inconclusive")
    ]
    assert [run["invocations"][0]["executionSuccessful"] for run in runs] == [True, True, False, True, True]


def test_junit_has_one_suite_per_model(mixed: GateResult) -> None:
    root = ElementTree.fromstring(merged_junit(mixed))
    suites = root.findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["masked", "clear", "missing", "late", "inconclusive"]
    for name in ("tests", "failures", "errors"):
        assert int(root.get(name, "")) == sum(int(suite.get(name, "")) for suite in suites)
    assert len(suites[2].findall("testcase/error")) == 1
