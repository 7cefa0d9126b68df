"""SARIF 2.1.0 (OASIS, 2020) for code scanning: one result per finding, one for the verdict, one for a claim.

Results are anchored at file and line where the audit knows them, else at the
model file, and carry a fingerprint of rule, module, op and cause, so that a
finding is recognised again although its figures vary.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import quote

from maskaudit.report import coerce, records, view, words
from maskaudit.results import dump_json

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

VERDICT_RULE = "maskaudit-verdict"
CLAIM_RULE = "maskaudit-claim"

_LEVELS = {"masked": "error", "suspect": "warning", "inconclusive": "note", "clear": "none"}

#: Figures inside a message, which vary between runs and are left out of the fingerprint.
_FIGURES = re.compile(r"[-+−]?\d[\d.,]*(?:[eE][-+−]?\d+|(?: × 10)?[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?%?")


def render(document: dict[str, Any]) -> str:
    """The report as SARIF.

    Args:
        document: the parsed JSON report.

    Raises:
        InputError: when the document is not a report that this version can read.
    """
    return log([run(document)])


def log(runs: list[dict[str, Any]]) -> str:
    """Runs as one SARIF file."""
    return dump_json({"$schema": SCHEMA, "version": "2.1.0", "runs": runs})


def run(document: dict[str, Any], *, without: Collection[str] = ()) -> dict[str, Any]:
    """A report as one run of a SARIF file.

    Args:
        without: rules whose results are left out.

    Raises:
        InputError: when the document is not a report that this version can read.
    """
    report = view.read(document)
    rules = [_verdict_rule(), *([_claim_rule()] if report.claimed is not None else [])]
    rules += [_rule(probe) for probe in _distinct(report.probes)]
    index = {rule["id"]: position for position, rule in enumerate(rules)}
    results = [_verdict(report), *([_claim(report)] if report.claimed is not None else [])]
    results += [result for probe in report.findings for result in _findings(probe, report)]
    results = [result for result in results if result["ruleId"] not in without]
    for result in results:
        result["ruleIndex"] = index[result["ruleId"]]
    driver = {"name": "maskaudit", "rules": rules}
    if version := coerce.text(coerce.mapping(document["tool"]).get("version")):
        driver["version"] = version
    return {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {"executionSuccessful": not report.partial, "toolExecutionNotifications": _notifications(report)}
        ],
        "results": results,
    }


def _verdict_rule() -> dict[str, Any]:
    return _described(
        VERDICT_RULE,
        "Gradient masking",
        "Whether the model's gradients or its loss hide examples that other attacks find. "
        "A statement about the search, not a guarantee about the model.",
    )


def _claim_rule() -> dict[str, Any]:
    return _described(
        CLAIM_RULE, "Claimed robust accuracy", "Whether the best attack refutes the robust accuracy that is claimed."
    )


def _rule(probe: records.ProbeView) -> dict[str, Any]:
    rule = _described(probe.rule, probe.title, probe.meaning or probe.title)
    advice = words.joined((probe.remedy, *(f"Source: {source}." for source in probe.sources)), "\n")
    if advice:
        rule["help"] = {"text": advice}
    return rule


def _described(rule: str, title: str, full: str) -> dict[str, Any]:
    return {"id": rule, "shortDescription": {"text": title}, "fullDescription": {"text": full}}


def _distinct(probes: tuple[records.ProbeView, ...]) -> list[records.ProbeView]:
    """One probe per rule, the first (worst) of each; rules of our own names are left out."""
    found: dict[str, records.ProbeView] = {}
    for probe in probes:
        found.setdefault(probe.rule, probe)
    return [probe for rule, probe in found.items() if rule not in (VERDICT_RULE, CLAIM_RULE)]


def _verdict(report: records.View) -> dict[str, Any]:
    places = [place for mechanism in report.mechanisms for place in mechanism.places] or [records.Place()]
    cause = words.joined(mechanism.id for mechanism in report.mechanisms)
    told = report.sentence.lower()
    further = [f"{one.title}." for one in report.mechanisms if one.title.lower() not in told]
    message = words.joined((report.sentence, *further), " ")
    result = _result(VERDICT_RULE, _LEVELS[report.label], message, places[0], cause or report.label, report)
    result["properties"] = {"verdict": report.label}
    if report.label == "clear":
        result["kind"] = "pass"
    elif report.label == "inconclusive":
        result["kind"], result["level"] = "open", "none"
    return result


def _claim(report: records.View) -> dict[str, Any]:
    best = words.rate(report.accuracy["best_known"])
    message = f"Claimed robust accuracy {words.percent(report.claimed or 0.0)}: {report.claim}; best known {best}."
    refuted = report.claim == "refuted"
    result = _result(CLAIM_RULE, "error" if refuted else "none", message, records.Place(), "claim", report)
    if not refuted:
        result["kind"] = "pass"
    return result


def _findings(probe: records.ProbeView, report: records.View) -> list[dict[str, Any]]:
    figure = words.joined((probe.figure, probe.limit and f"(limit {probe.limit})"), " ")
    headline = words.joined((probe.title, figure), ": ")
    rule = probe.rule if probe.rule not in (VERDICT_RULE, CLAIM_RULE) else VERDICT_RULE
    seen = probe.observations or (records.Observation("", records.Place()),)
    return [
        _result(rule, "warning", words.joined((headline, item.message), ". "), item.place, item.message, report)
        for item in seen
    ]


def _result(
    rule: str, level: str, message: str, place: records.Place, cause: str, report: records.View
) -> dict[str, Any]:
    location: dict[str, Any] = {}
    if artifact := _artifact(place.file or report.source):
        location["physicalLocation"] = {"artifactLocation": artifact}
        # Code scanning shows only results that have a line; line 1 means the file as a whole.
        location["physicalLocation"]["region"] = {"startLine": (place.line or 1) if place.file else 1}
    if place.module or place.op:
        name = place.module or place.op
        location["logicalLocations"] = [{"name": name, "fullyQualifiedName": _qualified(place), "kind": "module"}]
    result: dict[str, Any] = {
        "ruleId": rule,
        "level": level,
        "message": {"text": message},
        "partialFingerprints": {"maskaudit/v1": _fingerprint(rule, place, cause)},
    }
    if location:
        result["locations"] = [location]
    return result


def _qualified(place: records.Place) -> str:
    return words.joined((place.module, place.op), "/")


def _artifact(path: str) -> dict[str, str]:
    """A file as a SARIF artifact: relative paths under the source root, absolute ones as `file:` URIs.

    Everything but slashes is percent-encoded, so that no name in a document becomes another scheme of link.
    """
    if not path:
        return {}
    if re.match(r"[A-Za-z]:[\\/]", path):
        return {"uri": "file:///" + path[:2] + quote(path[2:].replace("\\", "/"), safe="/")}
    if path.startswith("/"):
        return {"uri": "file://" + quote("/" + path.lstrip("/"), safe="/")}
    return {"uri": quote(path.replace("\\", "/"), safe="/"), "uriBaseId": "%SRCROOT%"}


def _fingerprint(rule: str, place: records.Place, cause: str) -> str:
    """Stable over runs: rule, module, op and cause, with figures taken out of the cause."""
    return hashlib.sha256("\0".join((rule, place.module, place.op, steady(cause))).encode("utf-8")).hexdigest()[:32]


def steady(cause: str) -> str:
    """A cause without its figures, which vary between runs: `54 of 62 points` becomes `# of # points`."""
    return " ".join(_FIGURES.sub("#", cause).split())


def _notifications(report: records.View) -> list[dict[str, Any]]:
    """What did not run, and why."""
    failed = [("warning", p.rule, p.reason or "failed") for p in report.with_status("error")]
    idle = [("note", p.rule, p.reason or "not applicable") for p in report.with_status("not_applicable")]
    left = [("note", a.name, a.reason or a.status) for a in report.attacks_not_run]
    ended = [("error", "audit", report.partial)] if report.partial else []
    all_ = ended + failed + idle + left
    return [{"level": level, "message": {"text": f"{name}: {reason}"}} for level, name, reason in all_]
