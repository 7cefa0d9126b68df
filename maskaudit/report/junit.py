"""JUnit XML for CI systems: one test case for the verdict, one for the claim, one per probe.

The red and the green agree with the exit status of the audit: the verdict fails
when it is at or above `--fail-on`, an inconclusive audit is an error, and the
findings of probes are failures only where the verdict itself fails, since a
finding alone proves nothing.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from maskaudit.report import records, view, words


def render(document: dict[str, Any]) -> str:
    """The report as JUnit XML.

    Args:
        document: the parsed JSON report.

    Raises:
        InputError: when the document is not a report that this version can read.
    """
    report = view.read(document)
    root = ElementTree.Element("testsuites", name="maskaudit")
    suite = ElementTree.SubElement(root, "testsuite", name=f"maskaudit: {report.model}")
    _verdict(suite, report)
    if report.claimed is not None:
        _claim(suite, report)
    for probe in report.probes:
        _probe(suite, probe, report.failed)
    for element in (root, suite):
        element.set("tests", str(len(suite.findall("testcase"))))
        for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            if element is suite or kind != "skipped":  # the schema has no `skipped` for the root
                element.set(name, str(len(suite.findall(f"testcase/{kind}"))))
        element.set("time", f"{report.seconds or 0.0:.3f}")
    ElementTree.indent(root, space=" ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, group: str, name: str, seconds: float = 0.0) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=f"maskaudit.{group}", name=name, time=f"{max(seconds, 0.0):.3f}"
    )


def _outcome(case: ElementTree.Element, kind: str, message: str, lines: list[str], name: str) -> None:
    outcome = ElementTree.SubElement(case, kind, message=message, type=name)
    outcome.text = "\n".join(line for line in lines if line)


def _verdict(suite: ElementTree.Element, report: records.View) -> None:
    case = _case(suite, "verdict", "verdict")
    causes = [
        words.joined((cause.title, *(str(place) for place in cause.places[:5])), "; ") for cause in report.mechanisms
    ]
    lines = [report.sentence, *causes, *report.reasons, report.verify]
    if report.failed:
        _outcome(case, "failure", f"{report.label}: {report.sentence}", lines, report.label)
    elif report.label == "inconclusive" or report.partial:
        said = report.partial or f"inconclusive: {report.sentence}"
        _outcome(case, "error", said, lines, "partial" if report.partial else "inconclusive")
    else:
        ElementTree.SubElement(case, "system-out").text = "\n".join([report.label, *filter(None, lines)])


def _claim(suite: ElementTree.Element, report: records.View) -> None:
    case = _case(suite, "claim", "claim")
    claimed = words.percent(report.claimed or 0.0)
    found = f"claimed {claimed}, best known {words.rate(report.accuracy['best_known'])}: {report.claim}"
    if report.claim == "refuted" and report.fail_on != "never":
        _outcome(case, "failure", found, [found], "refuted")
    else:
        ElementTree.SubElement(case, "system-out").text = found


def _probe(suite: ElementTree.Element, probe: records.ProbeView, failed: bool) -> None:
    case = _case(suite, "probe", probe.rule, probe.seconds)
    seen = [words.joined((str(item.place), item.message), ": ") for item in probe.observations[:20]]
    figure = words.joined((probe.figure, probe.limit and f"(limit {probe.limit})"), " ")
    lines = [probe.title, figure, probe.meaning, probe.remedy, *seen, *probe.sources]
    if probe.status == "finding" and failed:
        _outcome(case, "failure", words.joined((probe.title, figure), ": "), lines, "finding")
    elif probe.status == "not_applicable":
        ElementTree.SubElement(case, "skipped", message=probe.reason or "not applicable")
    elif probe.status in ("finding", "pass"):
        ElementTree.SubElement(case, "system-out").text = "\n".join([probe.status, *filter(None, lines)])
    else:
        # A probe that crashed took no part in the verdict; the verdict says whether that made it inconclusive.
        ElementTree.SubElement(case, "skipped", message=f"did not run: {probe.reason or 'no reason given'}")
