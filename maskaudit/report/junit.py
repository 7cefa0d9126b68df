"""JUnit XML for CI systems: one test case for the verdict, one for the claim, one per probe.

The red and the green agree with the exit status of the audit: the verdict fails
when it is at or above `--fail-on`, an inconclusive audit is an error, and the
findings of probes are failures only where the verdict itself fails, since a
finding alone proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
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
    return written([Suite.of(document)], "maskaudit")


class Suite:
    """One test suite.

    Args:
        name: what CI shows it under; prefix: of the class names of its cases.
    """

    def __init__(self, name: str, *, prefix: str = "maskaudit", seconds: float = 0.0) -> None:
        self.element, self.prefix, self.seconds = ElementTree.Element("testsuite", name=name), prefix, seconds

    @classmethod
    def of(
        cls, document: dict[str, Any], *, name: str = "", prefix: str = "maskaudit",
        accepted: Mapping[str, str] = MappingProxyType({}),
    ) -> Suite:  # fmt: skip
        """The suite of a report.

        Args:
            accepted: why a failing "verdict" or "claim" is accepted; with the verdict the findings of probes are.

        Raises:
            InputError: when the document is not a report that this version can read.
        """
        report = view.read(document)
        suite = cls(name or f"maskaudit: {report.model}", prefix=prefix, seconds=report.seconds or 0.0)
        _verdict(suite.case("verdict", "verdict"), report, accepted.get("verdict", ""))
        if report.claimed is not None:
            _claim(suite.case("claim", "claim"), report, accepted.get("claim", ""))
        for probe in report.probes:
            _probe(suite.case("probe", probe.rule, probe.seconds), probe, report.failed and "verdict" not in accepted)
        return suite

    def case(self, group: str, name: str, seconds: float = 0.0) -> ElementTree.Element:
        """Add a test case to the suite; it is returned."""
        names = {"classname": f"{self.prefix}.{group}", "name": name, "time": f"{max(seconds, 0.0):.3f}"}
        return ElementTree.SubElement(self.element, "testcase", names)

    def error(self, message: str, kind: str) -> None:
        """A case of its own, before all others, for an audit that failed."""
        case = self.case("audit", "audit")
        self.element.remove(case)
        self.element.insert(0, case)
        _outcome(case, "error", message, [message], kind)


def written(suites: Sequence[Suite], name: str) -> str:
    """Suites as one JUnit file."""
    root = ElementTree.Element("testsuites", name=name)
    root.extend(suite.element for suite in suites)
    for suite in suites:
        _total(suite.element, [suite])
    _total(root, suites)
    ElementTree.indent(root, space=" ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _total(element: ElementTree.Element, suites: Sequence[Suite]) -> None:
    cases = [case for suite in suites for case in suite.element]
    element.set("tests", str(len(cases)))
    for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        if element.tag == "testsuite" or kind != "skipped":  # the schema has no `skipped` for the root
            element.set(name, str(sum(case.find(kind) is not None for case in cases)))
    element.set("time", f"{sum(suite.seconds for suite in suites):.3f}")


def _outcome(case: ElementTree.Element, kind: str, message: str, lines: list[str], name: str) -> None:
    outcome = ElementTree.SubElement(case, kind, message=message, type=name)
    outcome.text = "\n".join(line for line in lines if line)


def _verdict(case: ElementTree.Element, report: records.View, accepted: str) -> None:
    causes = [
        words.joined((cause.title, *(str(place) for place in cause.places[:5])), "; ") for cause in report.mechanisms
    ]
    lines = [report.sentence, *causes, *report.reasons, report.verify]
    if accepted:
        ElementTree.SubElement(case, "skipped", message=accepted)
    elif report.failed:
        _outcome(case, "failure", f"{report.label}: {report.sentence}", lines, report.label)
    elif report.label == "inconclusive" or report.partial:
        message = report.partial or f"inconclusive: {report.sentence}"
        _outcome(case, "error", message, lines, "partial" if report.partial else "inconclusive")
    else:
        ElementTree.SubElement(case, "system-out").text = "\n".join([report.label, *filter(None, lines)])


def _claim(case: ElementTree.Element, report: records.View, accepted: str) -> None:
    claimed = words.percent(report.claimed or 0.0)
    found = f"claimed {claimed}, best known {words.rate(report.accuracy['best_known'])}: {report.claim}"
    if accepted:
        ElementTree.SubElement(case, "skipped", message=accepted)
    elif report.claim == "refuted" and report.fail_on != "never":
        _outcome(case, "failure", found, [found], "refuted")
    else:
        ElementTree.SubElement(case, "system-out").text = found


def _probe(case: ElementTree.Element, probe: records.ProbeView, failed: bool) -> None:
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
