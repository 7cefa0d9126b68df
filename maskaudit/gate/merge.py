"""One SARIF log and one JUnit file for all models of a gate, without what the baselines accept."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from maskaudit.gate.baselines import Kind, visible
from maskaudit.gate.running import GateResult, Outcome
from maskaudit.report import coerce, junit, sarif

#: What a baseline can only accept explicitly, with its rule in SARIF.
_PROVEN: tuple[tuple[Kind, str], ...] = (("verdict", sarif.VERDICT_RULE), ("claim", sarif.CLAIM_RULE))


def merged_sarif(result: GateResult) -> str:
    """SARIF 2.1.0 with one run per model, each of a category of its own, as code scanning wants it.

    Accepted results are left out, since code scanning would show them. A model that could not be
    audited is a run whose execution was not successful.
    """
    runs = [_run(outcome) for outcome in result.outcomes]
    return json.dumps({"$schema": sarif.SCHEMA, "version": "2.1.0", "runs": runs}, indent=1, ensure_ascii=False) + "\n"


def _run(outcome: Outcome) -> dict[str, object]:
    run: dict[str, object]
    if outcome.document is None or outcome.ruling is None:
        note = {"level": "error", "message": {"text": coerce.text(outcome.error, "not audited")}}
        run = {
            "tool": {"driver": {"name": "maskaudit"}},
            "invocations": [{"executionSuccessful": False, "toolExecutionNotifications": [note]}],
            "results": [],
        }
    else:
        run = json.loads(sarif.render(visible(outcome.document, outcome.ruling)))["runs"][0]
        left_out = {rule for kind, rule in _PROVEN if outcome.ruling.accepted(kind)}
        results = run["results"]
        assert isinstance(results, list)
        run["results"] = [item for item in results if item["ruleId"] not in left_out]
    return {**run, "automationDetails": {"id": f"maskaudit/{outcome.entry.folder}/"}}


def merged_junit(result: GateResult) -> str:
    """JUnit XML with one test suite per model; a failure in it and the gate's exit status agree."""
    root = ElementTree.Element("testsuites", name="maskaudit gate")
    for outcome in result.outcomes:
        suite = _suite(outcome)
        suite.set("name", coerce.text(outcome.entry.name))
        for element in suite.iter("testcase"):
            element.set("classname", f"{coerce.text(outcome.entry.name)}.{element.get('classname', '')}")
        _count(suite, [suite])
        root.append(suite)
    _count(root, list(root))
    ElementTree.indent(root, space=" ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(outcome: Outcome) -> ElementTree.Element:
    if outcome.document is None or outcome.ruling is None:
        suite = ElementTree.Element("testsuite", time="0.000")
        _case(suite, "error", coerce.text(outcome.error, "not audited"), "not audited")
        return suite
    document = visible(outcome.document, outcome.ruling)
    suite = next(iter(ElementTree.fromstring(junit.render(document))))
    for name, _ in _PROVEN:
        baselines = outcome.ruling.accepted(name)
        for case in suite.findall("testcase") if baselines else ():
            # With an accepted verdict the findings of probes fail nothing either.
            if case.get("classname") == f"maskaudit.{name}":
                reason = coerce.text(baselines[0].reason)
                _skip(case, f"accepted until {baselines[0].expires}: {reason}")
            elif name == "verdict" and case.get("classname") == "maskaudit.probe":
                for failure in case.findall("failure"):
                    failure.tag = "system-out"
                    failure.attrib.clear()
    if outcome.error:
        _case(suite, "error", coerce.text(outcome.error), "model failed")
    return suite


def _case(suite: ElementTree.Element, kind: str, message: str, name: str) -> None:
    case = ElementTree.Element("testcase", classname="maskaudit.audit", name="audit", time="0.000")
    ElementTree.SubElement(case, kind, message=message, type=name).text = message
    suite.insert(0, case)


def _skip(case: ElementTree.Element, message: str) -> None:
    for child in list(case):
        case.remove(child)
    ElementTree.SubElement(case, "skipped", message=message)


def _count(element: ElementTree.Element, suites: list[ElementTree.Element]) -> None:
    cases = [case for suite in suites for case in suite.findall("testcase")]
    element.set("tests", str(len(cases)))
    for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        if element.tag == "testsuite" or kind != "skipped":  # the schema has no `skipped` for the root
            element.set(name, str(sum(case.find(kind) is not None for case in cases)))
    element.set("time", f"{sum(float(suite.get('time') or 0) for suite in suites):.3f}")
