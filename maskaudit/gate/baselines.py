"""Baselines: known findings that are accepted for a while, with a reason and a date.

A baseline is keyed on rule, module, op and cause, never on line numbers or measured
values, so that it survives edits and reruns. It can suppress a probe's finding or a
`suspect`. A proven `masked` verdict and a refuted claim stay what they are unless the
baseline says `accept_masked = true`, and even then they are reported, as accepted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from maskaudit.report import records, view
from maskaudit.report.coerce import text as one_line
from maskaudit.report.sarif import CLAIM_RULE, VERDICT_RULE, steady

FindingKind = Literal["verdict", "claim", "probe"]


@dataclass(frozen=True)
class Baseline:
    """One accepted finding; empty fields match anything.

    Attributes:
        rule: a probe's rule, `maskaudit-verdict`, the id of a mechanism, or `maskaudit-claim`.
        module, op: where in the model, as the report names it.
        cause: the finding's message (figures do not matter) or the verdict's mechanism.
        model: name of the only model it is meant for.
        reason: why it is accepted.
        expires: last day on which it holds.
        accept_masked: whether it may also accept what is proven.
        number: its position in the configuration, from 1.
    """

    rule: str
    reason: str
    expires: date
    module: str = ""
    op: str = ""
    cause: str = ""
    model: str = ""
    accept_masked: bool = False
    number: int = 1

    def matches(self, finding: Finding, model: str) -> bool:
        """Whether this baseline is meant for a finding, whatever the date."""
        return (
            self.rule in finding.rules
            and self.model in ("", model)
            and self.module in ("", finding.module)
            and self.op in ("", finding.op)
            and (not self.cause or steady(self.cause) == steady(finding.cause))
        )

    def expired(self, today: date) -> bool:
        """Whether its last day has passed."""
        return today > self.expires

    def __str__(self) -> str:
        key = ", ".join(part for part in (self.rule, self.module, self.op, self.cause, self.model) if part)
        return f"baseline {self.number} ({key})"


@dataclass(frozen=True)
class Finding:
    """Something that a baseline can be held against: the verdict at one place, the claim, or a probe's finding."""

    kind: FindingKind
    rule: str
    module: str
    op: str
    cause: str
    message: str
    mechanism: str = ""

    @property
    def rules(self) -> tuple[str, ...]:
        """Names by which a baseline may call its rule."""
        return (self.rule, self.mechanism) if self.mechanism else (self.rule,)


@dataclass(frozen=True)
class Ruling:
    """What the baselines make of one report.

    Attributes:
        findings: everything found, each with the baseline that suppresses it, or None.
        label, claim: verdict and claim as the build sees them: accepted ones count as `clear` and `not_refuted`.
        notes: expired baselines, and those that are not allowed to suppress what they match.
        used: numbers of the baselines that matched anything.
    """

    findings: tuple[tuple[Finding, Baseline | None], ...]
    label: str
    claim: str
    notes: tuple[str, ...] = ()
    used: frozenset[int] = frozenset()

    def accepted(self, kind: FindingKind) -> tuple[Baseline, ...]:
        """The baselines that suppress findings of a kind, if they suppress all of them."""
        found = [baseline for finding, baseline in self.findings if finding.kind == kind]
        kept = tuple(dict.fromkeys(baseline for baseline in found if baseline is not None))
        return kept if found and None not in found else ()


def findings(document: dict[str, Any]) -> tuple[Finding, ...]:
    """What a report holds against its model: a bad verdict, a refuted claim, the findings of probes.

    Raises:
        InputError: when the document is not a report that this version can read.
    """
    report = view.read(document)
    found: list[Finding] = []
    if report.label in ("masked", "suspect"):
        found += [
            _at("verdict", VERDICT_RULE, place, mechanism.id, mechanism.title, mechanism.id)
            for mechanism in report.mechanisms
            for place in mechanism.places or (records.Place(),)
        ] or [_at("verdict", VERDICT_RULE, records.Place(), report.label, report.sentence)]
    if report.claim == "refuted":
        message = (
            f"The claimed robust accuracy of {report.claimed:g} is refuted."
            if report.claimed is not None
            else "refuted"
        )
        found.append(_at("claim", CLAIM_RULE, records.Place(), "claim", message))
    for probe in report.findings:
        seen = probe.observations or (records.Observation("", records.Place()),)
        found += [_at("probe", probe.rule, item.place, item.message, item.message or probe.title) for item in seen]
    return tuple(found)


def rule_on(document: dict[str, Any], baselines: Sequence[Baseline], *, model: str, today: date) -> Ruling:
    """Hold the baselines against one report.

    Args:
        document: the parsed JSON report.
        baselines: those of the configuration.
        model: the name of the report's entry.
        today: the day on which baselines must not have expired.
    """
    label, claim = document["verdict"]["label"], document["claim"]["status"]
    judged: list[tuple[Finding, Baseline | None]] = []
    notes: list[str] = []
    used: set[int] = set()
    for finding in findings(document):
        proven = finding.kind == "claim" or (finding.kind == "verdict" and label == "masked")
        chosen: Baseline | None = None
        for baseline in (one for one in baselines if one.matches(finding, model)):
            used.add(baseline.number)
            if baseline.expired(today):
                notes.append(f"{baseline} expired on {baseline.expires} and suppresses nothing: renew or remove it.")
            elif proven and not baseline.accept_masked:
                what = "a refuted claim" if finding.kind == "claim" else "a proven verdict"
                notes.append(f"{baseline} cannot suppress {what} without accept_masked = true.")
            else:
                chosen = chosen or baseline
        judged.append((finding, chosen))
    ruling = Ruling(tuple(judged), label, claim, tuple(dict.fromkeys(notes)), frozenset(used))
    if ruling.accepted("verdict"):
        label = "clear"
    if ruling.accepted("claim"):
        claim = "not_refuted"
    return Ruling(ruling.findings, label, claim, ruling.notes, ruling.used)


def visible(document: dict[str, Any], ruling: Ruling) -> dict[str, Any]:
    """A copy of the report without suppressed findings of probes, for formats that only want what is new.

    A probe that has none left did not apply, for the reason that its baseline gives. Verdict and claim
    stay as they are; `maskaudit.gate.merge` knows how each format says that one is accepted.
    """
    hidden: dict[str, list[tuple[Finding, Baseline]]] = {}
    for finding, baseline in ruling.findings:
        if finding.kind == "probe" and baseline is not None:
            hidden.setdefault(finding.rule, []).append((finding, baseline))
    result = copy.deepcopy(document)
    for probe in result["probes"]:
        gone = hidden.get(probe["rule"], []) if probe["status"] == "finding" else []
        if not gone:
            continue
        causes = {(finding.module, finding.op, finding.cause) for finding, _ in gone}
        probe["findings"] = [item for item in probe["findings"] if _key(item) not in causes]
        if not probe["findings"]:
            baseline = gone[0][1]
            probe["status"] = "not_applicable"
            probe["reason"] = f"accepted until {baseline.expires}: {baseline.reason}"
    return result


def _at(kind: FindingKind, rule: str, place: records.Place, cause: str, message: str, mechanism: str = "") -> Finding:
    return Finding(kind, rule, place.module, place.op, cause, message, mechanism)


def _key(item: dict[str, Any]) -> tuple[str, str, str]:
    place = item["location"]
    return one_line(place["module"]), one_line(place["op"]), one_line(item["message"])
