"""SARIF and JUnit: the structure that their readers expect."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from maskaudit.report import render

from . import sample


def sarif(document: dict[str, Any]) -> dict[str, Any]:
    log: dict[str, Any] = json.loads(render(document, "sarif"))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    return dict(run)


def junit(document: dict[str, Any]) -> dict[str, ElementTree.Element]:
    root = ElementTree.fromstring(render(document, "junit"))
    (suite,) = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert int(suite.get("tests", "")) == int(root.get("tests", "")) == len(cases)
    for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(suite.get(name, "")) == len(suite.findall(f"testcase/{kind}"))
    return {case.get("name", ""): case for case in cases}


def outcome(case: ElementTree.Element) -> str:
    return next((child.tag for child in case if child.tag != "system-out"), "passed")


@pytest.mark.parametrize("document", [sample.masked().to_dict(), sample.hostile(), sample.inconclusive().to_dict()])
def test_sarif_structure(document: dict[str, Any]) -> None:
    run = sarif(document)
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result.get("kind", "fail") == "fail" or result["level"] == "none"
        assert len(result["partialFingerprints"]["maskaudit/v1"]) == 32
        for location in result.get("locations", []):
            uri = location["physicalLocation"]["artifactLocation"]["uri"]
            assert ":" not in uri
            assert location["physicalLocation"]["region"]["startLine"] >= 1
    for notification in run["invocations"][0]["toolExecutionNotifications"]:
        assert notification["message"]["text"]


def test_sarif_one_result_per_finding_at_its_line() -> None:
    run = sarif(sample.masked().to_dict())
    by_rule: dict[str, list[Any]] = {}
    for result in run["results"]:
        by_rule.setdefault(result["ruleId"], []).append(result)
    assert {rule: len(results) for rule, results in by_rule.items()} == {
        "maskaudit-verdict": 1, "maskaudit-claim": 1, "zero-gradient": 2, "unbounded-attack": 1,
        "loss-decision-gradient-ratio": 1,
    }  # fmt: skip
    physical = by_rule["zero-gradient"][0]["locations"][0]["physicalLocation"]
    assert physical == {"artifactLocation": {"uri": "net.py", "uriBaseId": "%SRCROOT%"}, "region": {"startLine": 41}}
    logical = by_rule["zero-gradient"][0]["locations"][0]["logicalLocations"][0]
    assert logical["fullyQualifiedName"] == "fc2/Linear"
    model = by_rule["loss-decision-gradient-ratio"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert model == "maskaudit-out/gre_at_ce.safetensors"
    assert by_rule["maskaudit-verdict"][0]["level"] == "error"


def test_sarif_fingerprint_ignores_figures_but_not_places() -> None:
    document = sample.masked().to_dict()

    def fingerprint() -> str:
        results = [r for r in sarif(document)["results"] if r["ruleId"] == "zero-gradient"]
        return str(results[-1]["partialFingerprints"]["maskaudit/v1"])

    (finding,) = (p for p in document["probes"] if p["rule"] == "zero-gradient")
    before = fingerprint()
    finding["value"] = 0.7
    finding["findings"][-1]["message"] = "The logit margin has no usable gradient on 7 of 190 points."
    assert fingerprint() == before
    finding["findings"][-1]["message"] = "mean logit is −6.6e5"
    before = fingerprint()
    for same in ("mean logit is −7.1e5", "mean logit is 7.9 × 10⁻³⁹", "mean logit is 10⁸", "mean logit is 0.25"):
        finding["findings"][-1]["message"] = same
        assert fingerprint() == before
    finding["findings"][-1]["location"]["module"] = "fc1"
    assert fingerprint() != before


def test_sarif_states_a_cause_once() -> None:
    document = sample.masked().to_dict()
    title = document["verdict"]["mechanisms"][0]["title"]
    document["verdict"]["sentence"] = f"Robustness is overstated. The likely cause: {title[0].lower()}{title[1:]}."
    (result,) = (r for r in sarif(document)["results"] if r["ruleId"] == "maskaudit-verdict")
    assert result["message"]["text"].lower().count(title.lower()) == 1
    document["verdict"]["sentence"] = "Robustness is overstated."
    (result,) = (r for r in sarif(document)["results"] if r["ruleId"] == "maskaudit-verdict")
    assert title in result["message"]["text"]


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("/srv/a b.py", "file:///srv/a%20b.py"),
        ("C:\\models\\net.py", "file:///C:/models/net.py"),
        ("//evil.example/x", "file:///evil.example/x"),
        ("src\\net.py", "src/net.py"),
    ],
)
def test_sarif_artifacts(path: str, uri: str) -> None:
    document = sample.clear().to_dict()
    document["target"]["source"] = path
    found = sarif(document)["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert found == uri


def test_sarif_clear_passes_and_inconclusive_is_open() -> None:
    assert sarif(sample.clear().to_dict())["results"][0]["kind"] == "pass"
    assert sarif(sample.inconclusive().to_dict())["results"][0]["kind"] == "open"


def test_junit_masked_fails_with_claim_and_findings() -> None:
    cases = junit(sample.masked().to_dict())
    assert {name: outcome(case) for name, case in cases.items()} == {
        "verdict": "failure", "claim": "failure", "zero-gradient": "failure", "unbounded-attack": "failure",
        "loss-decision-gradient-ratio": "failure", "low-gradient-curvature": "skipped",
        "one-step-beats-iterative": "skipped", "randomness": "passed", "dead-relu": "passed", "saturation": "passed",
    }  # fmt: skip


def test_junit_agrees_with_the_exit_status() -> None:
    assert outcome(junit(sample.clear().to_dict())["verdict"]) == "passed"
    assert outcome(junit(sample.inconclusive().to_dict())["verdict"]) == "error"
    document = sample.masked().to_dict()
    document["verdict"]["label"] = "suspect"
    assert outcome(junit(document)["verdict"]) == "passed"
    assert outcome(junit(document)["zero-gradient"]) == "passed"
    document["settings"]["fail_on"] = "suspect"
    assert outcome(junit(document)["verdict"]) == "failure"
    document["settings"]["fail_on"] = "never"
    assert outcome(junit(document)["verdict"]) == "passed"
    assert outcome(junit(document)["claim"]) == "passed"


def test_junit_holds_hostile_strings() -> None:
    cases = junit(sample.hostile())
    assert "<script>alert(1)</script>" in (cases["verdict"].find("failure").get("message") or "")  # type: ignore[union-attr]
