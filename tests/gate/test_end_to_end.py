"""The gate as a build runs it: one masked and one clear model, one that is not there, really audited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from maskaudit.command.compare import compare_files, text
from maskaudit.report.github import MAX_ANNOTATIONS

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent.parent

#: Files of the official schemas, for machines that have them: SARIF 2.1.0 (OASIS), and JUnit's XSD as Jenkins has it.
SARIF_SCHEMA = os.environ.get("MASKAUDIT_SARIF_SCHEMA")
JUNIT_SCHEMA = os.environ.get("MASKAUDIT_JUNIT_XSD")

CONFIG = """
[tool.maskaudit]
budget = "quick"

[[tool.maskaudit.models]]
model = "zoo:logits-x1e4"
samples = 64

[[tool.maskaudit.models]]
name = "plain"
model = "{standard}"
claim = 0.0

[[tool.maskaudit.models]]
model = "missing.safetensors"

[[tool.maskaudit.baseline]]
rule = "output-kind"
reason = "scaled on purpose"
expires = 9999-12-31
"""


@dataclass(frozen=True)
class Run:
    folder: Path
    status: int
    stdout: str
    stderr: str

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "summary.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def gated(standard_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of the gate on GitHub Actions, from a folder below the configuration, on a narrow code page."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "pyproject.toml").write_text(CONFIG.format(standard=standard_file.as_posix()), encoding="utf-8")
    (folder / "below").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "maskaudit.cli", "gate", "--out", "../out", "-q"],
        cwd=folder / "below",
        capture_output=True,
        timeout=300,
        env={
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252",
            "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "steps.md"),
            "GITHUB_WORKSPACE": str(folder),
        },
    )  # fmt: skip
    return Run(folder, done.returncode, done.stdout.decode("cp1252"), done.stderr.decode("cp1252"))


def test_statuses_of_the_contract(gated: Run) -> None:
    found = {model["name"]: (model["verdict"], model["status"]) for model in gated.summary["models"]}
    assert found == {"logits-x1e4": ("masked", 1), "plain": ("clear", 0), "missing": (None, 2)}, gated.stderr
    assert gated.status == gated.summary["status"] == 2
    assert gated.stderr == ""


def test_the_table_is_on_stdout(gated: Run) -> None:
    lines = gated.stdout.splitlines()
    assert lines[0].split() == ["model", "threat", "verdict", "robust", "accuracy", "claim", "gate"]
    assert [line.split()[0] for line in lines[2:5]] == ["logits-x1e4", "plain", "missing"]
    assert "1 of 3 models pass; exit status 2" in lines


def test_the_reports_are_kept(gated: Run) -> None:
    assert sorted(path.name for path in gated.out.iterdir()) == [
        "index.html", "junit.xml", "logits-x1e4", "maskaudit.sarif", "plain", "summary.json", "summary.md",
    ]  # fmt: skip
    document = json.loads((gated.out / "plain" / "audit.json").read_text(encoding="utf-8"))
    assert document["settings"]["command"].startswith("maskaudit check ")
    assert document["claim"] == {"claimed": 0.0, "status": "not_refuted"}


def test_the_baseline_took_out_its_finding_only(gated: Run) -> None:
    findings = gated.summary["models"][0]["findings"]
    accepted = {finding["rule"] for finding in findings if finding["accepted"]}
    assert accepted == {"output-kind"}
    runs = json.loads((gated.out / "maskaudit.sarif").read_text(encoding="utf-8"))["runs"]
    rules = {item["ruleId"] for item in runs[0]["results"]}
    assert "output-kind" not in rules
    assert {"maskaudit-verdict", "zero-gradient"} <= rules


def test_github_was_told(gated: Run) -> None:
    commands = [line for line in gated.stdout.splitlines() if line.startswith("::")]
    assert 2 <= len(commands) <= MAX_ANNOTATIONS
    assert sum(line.startswith("::error") for line in commands) >= 2
    assert "::error file=pyproject.toml,title=maskaudit%3A missing::" in gated.stdout
    assert (gated.folder / "steps.md").read_text(encoding="utf-8").startswith("## maskaudit gate did not pass")


def test_the_two_audits_compare_point_by_point(gated: Run) -> None:
    found = compare_files(gated.out / "logits-x1e4", gated.out / "plain")
    assert found["points"]["common"] == 64
    tests = {test["name"]: test for test in found["attacks"]["common"]}
    assert tests["pgd"]["p_holm"] < 0.01
    assert tests["pgd"]["lost_only_by_b"] > 20
    assert "B is broken more" in text(found)


def test_sarif_structure(gated: Run) -> None:
    log = json.loads((gated.out / "maskaudit.sarif").read_text(encoding="utf-8"))
    assert log["version"] == "2.1.0"
    assert len({run["automationDetails"]["id"] for run in log["runs"]}) == len(log["runs"]) == 3
    for run in log["runs"]:
        rules = run["tool"]["driver"].get("rules", [])
        for result in run["results"]:
            assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
            assert result["message"]["text"]
            assert result["partialFingerprints"]
            for location in result.get("locations", []):
                assert location["physicalLocation"]["region"]["startLine"] >= 1


def test_junit_structure(gated: Run) -> None:
    root = ElementTree.parse(gated.out / "junit.xml").getroot()
    assert root.tag == "testsuites"
    assert {suite.tag for suite in root} == {"testsuite"}
    for suite in root:
        cases = suite.findall("testcase")
        assert int(suite.get("tests", "")) == len(cases)
        for case in cases:
            assert case.get("name")
            assert case.get("classname")
            assert {child.tag for child in case} <= {"failure", "error", "skipped", "system-out"}
            assert len(case) <= 1


def _sarif_faults(content: bytes) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(Path(str(SARIF_SCHEMA)).read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [error.message for error in validator.iter_errors(json.loads(content))]


def _junit_faults(content: bytes) -> list[str]:
    xmlschema = pytest.importorskip("xmlschema")
    return [str(error) for error in xmlschema.XMLSchema(JUNIT_SCHEMA).iter_errors(content.decode())]


@pytest.mark.parametrize(
    ("name", "schema", "faults"),
    [("maskaudit.sarif", SARIF_SCHEMA, _sarif_faults), ("junit.xml", JUNIT_SCHEMA, _junit_faults)],
    ids=["sarif", "junit"],
)
def test_official_schemas(name: str, schema: str | None, faults: Callable[[bytes], list[str]], gated: Run) -> None:
    if not schema:
        pytest.skip("no schema file is named by MASKAUDIT_SARIF_SCHEMA, MASKAUDIT_JUNIT_XSD")
    assert faults((gated.out / name).read_bytes()) == []
