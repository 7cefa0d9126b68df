"""The pytest plugin, run inside a pytest of its own."""

from __future__ import annotations

import dataclasses
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from maskaudit import api
from maskaudit.auditing.runner import Audit
from maskaudit.errors import ModelError
from maskaudit.report import render
from maskaudit.results import AuditReport, Claim
from maskaudit.settings import AuditSettings

from .report import sample

pytest_plugins = ["pytester"]

#: Where the package is not installed, its entry point is not known to pytest.
LOAD = () if entry_points(group="pytest11", name="maskaudit") else ("-p", "maskaudit.pytest_plugin")

ONE_TEST = """
def test_claim(maskaudit):
    maskaudit.assert_not_masked("zoo:standard", "digits", eps=8 / 255, claim=0.5, budget="quick" {more})
"""


@pytest.fixture(autouse=True, scope="module")
def _what_a_report_loads() -> None:
    """Loaded before: pytester forgets the modules imported within it, and matplotlib's compiled ones load once only."""
    render(sample.masked().to_dict(), "html")


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the next audit gives (`report`, `failure`), and with what it was asked for (`kwargs`)."""
    state: dict[str, Any] = {"report": sample.clear(), "failure": None}

    def audit(model: object, data: object = None, **kwargs: Any) -> Audit:
        state.update(model=model, data=data, kwargs=kwargs)
        return Audit(state["report"], b"", state["failure"])

    monkeypatch.setattr(api, "audit", audit)
    return state


def run(pytester: pytest.Pytester, more: str = "", *options: str, code: str = ONE_TEST) -> pytest.RunResult:
    pytester.makepyfile(code.replace("{more}", more))
    return pytester.runpytest_inprocess(*LOAD, "-p", "no:xdist", "-p", "no:cacheprovider", *options)


def test_a_clear_model_passes(pytester: pytest.Pytester, audited: dict[str, Any]) -> None:
    run(pytester).assert_outcomes(passed=1)
    assert (audited["model"], audited["data"]) == ("zoo:standard", "digits")
    assert audited["kwargs"]["eps"] == 8 / 255
    assert (audited["kwargs"]["claim"], audited["kwargs"]["budget"]) == (0.5, "quick")


def test_the_failure_reads_like_the_report(pytester: pytest.Pytester, audited: dict[str, Any]) -> None:
    audited["report"] = sample.masked()
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "MASKED  Robustness is overstated*",
            "*- Loss level: 143 of 196 points withstand*",
            "*cause *The logits are so large*",
            "robust accuracy*at most 0.0%*reference attack 71.5%*",
            "claim*70.0%: refuted",
            "attack*role*robust accuracy*",
            "apgd-margin*196/196*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


@pytest.mark.parametrize(
    ("label", "claim", "more", "outcome"),
    [
        ("suspect", "no_claim", "", "passed"),
        ("suspect", "no_claim", ', fail_on="suspect"', "failed"),
        ("inconclusive", "no_claim", ', fail_on="suspect"', "passed"),
        ("inconclusive", "no_claim", ', fail_on="inconclusive"', "failed"),
        ("clear", "refuted", "", "failed"),
        ("clear", "refuted", ', fail_on="never"', "passed"),
        ("clear", "not_refuted", ', fail_on="inconclusive"', "passed"),
    ],
)
def test_what_fails(
    label: Any, claim: Any, more: str, outcome: str, pytester: pytest.Pytester, audited: dict[str, Any]
) -> None:
    report: AuditReport = sample.masked()
    verdict = dataclasses.replace(report.verdict, label=label)
    audited["report"] = dataclasses.replace(report, verdict=verdict, claim=Claim(0.5, claim))
    result = run(pytester, more)
    result.assert_outcomes(**{outcome: 1}, warnings=int(label == "inconclusive" and outcome == "passed"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fail_on", ["masked", "inconclusive", "never"])
@pytest.mark.parametrize(
    ("label", "claim"), [("masked", "no_claim"), ("inconclusive", "refuted"), ("clear", "refuted")]
)
def test_the_function_fails_where_the_fixture_does(
    label: Any, claim: Any, fail_on: Any, audited: dict[str, Any], maskaudit_auditor: Any
) -> None:
    report: AuditReport = sample.masked()
    verdict = dataclasses.replace(report.verdict, label=label)
    audited["report"] = dataclasses.replace(report, verdict=verdict, claim=Claim(0.5, claim))
    if fail_on == "never":
        api.assert_not_masked("m", fail_on=fail_on)
        maskaudit_auditor.assert_not_masked("m", fail_on=fail_on)
        return
    with pytest.raises(AssertionError, match=label.upper()):
        api.assert_not_masked("m", fail_on=fail_on)
    with pytest.raises(AssertionError, match=label.upper()):
        api.assert_not_masked("m", settings=AuditSettings(fail_on=fail_on))
    with pytest.raises(pytest.fail.Exception, match=label.upper()):
        maskaudit_auditor.assert_not_masked("m", fail_on=fail_on)


MARKED = """
import pytest

pytestmark = pytest.mark.maskaudit(norm="L2", eps=1.0)

@pytest.mark.maskaudit(eps=0.25, budget="thorough")
def test_claim(maskaudit):
    maskaudit.assert_not_masked("zoo:standard", claim=0.5)
"""


def test_the_nearest_marker_brings_options(pytester: pytest.Pytester, audited: dict[str, Any]) -> None:
    run(pytester, code=MARKED).assert_outcomes(passed=1)
    assert audited["kwargs"] == {"norm": "L2", "eps": 0.25, "budget": "thorough", "claim": 0.5}


def test_a_marker_brings_the_data_too(pytester: pytest.Pytester, audited: dict[str, Any]) -> None:
    marked = 'import pytest\npytestmark = pytest.mark.maskaudit(data="digits")\n'
    run(pytester, code=marked + "def test_it(maskaudit): maskaudit.audit('m')").assert_outcomes(passed=1)
    assert audited["data"] == "digits"
    run(pytester, code=marked + "def test_it(maskaudit): maskaudit.audit('m', 'own')").assert_outcomes(passed=1)
    assert audited["data"] == "own"


@pytest.mark.parametrize("arguments", ["'zoo:standard'", "model='zoo:standard'"])
def test_a_marker_takes_no_model(arguments: str, pytester: pytest.Pytester, audited: dict[str, Any]) -> None:
    code = f"import pytest\n@pytest.mark.maskaudit({arguments})\ndef test_it(maskaudit): maskaudit.audit('m')"
    result = run(pytester, code=code)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["The marker maskaudit takes options by name*"])


def test_reports_lie_where_pytest_was_started(pytester: pytest.Pytester, audited: dict[str, Any]) -> None:
    """Tests that change folder, and tests of the same name: the reports of none are lost."""
    code = (
        "import os, pytest\n"
        "@pytest.mark.parametrize('n', ['a/b', 'a-b'])\n"
        "def test_it(maskaudit, n, tmp_path, monkeypatch):\n"
        "    monkeypatch.chdir(tmp_path); maskaudit.audit('m')\n"
    )
    run(pytester, "", "--maskaudit-out", "kept", code=code).assert_outcomes(passed=2)
    assert len(list((pytester.path / "kept").glob("*/audit.json"))) == 2


def test_the_command_line_has_the_last_word_on_the_budget(pytester: pytest.Pytester, audited: dict[str, Any]) -> None:
    run(pytester, "", "--maskaudit-budget", "quick", code=MARKED).assert_outcomes(passed=1)
    assert audited["kwargs"]["budget"] == "quick"


@pytest.mark.parametrize(("chosen", "passed", "deselected"), [("maskaudit", 1, 1), ("not maskaudit", 1, 1)])
def test_tests_that_audit_can_be_told_apart(
    chosen: str, passed: int, deselected: int, pytester: pytest.Pytester, audited: dict[str, Any]
) -> None:
    code = ONE_TEST + "\ndef test_other(): pass\n"
    run(pytester, "", "-m", chosen, "--strict-markers", code=code).assert_outcomes(passed=passed, deselected=deselected)
    assert ("kwargs" in audited) == (chosen == "maskaudit")


def test_reports_are_kept(pytester: pytest.Pytester, audited: dict[str, Any]) -> None:
    audited["report"] = sample.masked()
    again = "\ndef test_again(maskaudit):\n    maskaudit.audit('m'); maskaudit.audit('m')\n"
    run(pytester, "", "--maskaudit-out", "kept", code=ONE_TEST + again).assert_outcomes(passed=1, failed=1)
    name = "test_reports_are_kept.py-test_"
    kept = {path.parent.name for path in (pytester.path / "kept").glob("*/report.html")}
    assert kept == {f"{name}claim", f"{name}again", f"{name}again-2"}


def test_errors_are_errors(pytester: pytest.Pytester, audited: dict[str, Any]) -> None:
    audited["failure"] = ModelError("out of luck")
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ModelError: out of luck*"])


def test_the_plugin_does_not_import_torch(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    pytester.makepyfile("import sys\ndef test_light(): assert 'torch' not in sys.modules")
    pytester.runpytest_subprocess(*LOAD, "-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_real_audit_through_the_fixture(maskaudit_auditor: Any, zoo_cache: object) -> None:
    with pytest.raises(pytest.fail.Exception, match="overstated"):
        maskaudit_auditor.assert_not_masked(
            "zoo:logits-x1e4", samples=32, budget="quick", ignore=("transfer", "decision", "repaired"), eps=0.2
        )


@pytest.fixture
def maskaudit_auditor() -> Any:
    from maskaudit.pytest_plugin import Auditor

    return Auditor()
