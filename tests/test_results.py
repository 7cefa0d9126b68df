"""The JSON document: plain types, canonical text, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

import pytest

from maskaudit.command.status import exit_status
from maskaudit.errors import InputError
from maskaudit.results import (
    REQUIRED_SECTIONS,
    AuditReport,
    Claim,
    ProbeResult,
    Rate,
    Verdict,
    check_document,
    dump_json,
    plain,
)


def report(**changes: Any) -> AuditReport:
    """A small report."""
    empty: dict[str, Any] = {}
    base = AuditReport(
        tool={"name": "maskaudit"}, environment=empty, target=empty, threat={"norm": "Linf"}, settings={"seed": 0},
        verdict=Verdict("clear", "No masking found."), claim=Claim(None, "no_claim"),
        accuracy={"clean": Rate(0.5, 0.4, 0.6, 10), "certified": None}, masking=empty, power=empty,
        probes=(ProbeResult("rule", "Title", "pass", value=math.nan, details={"scales": (1, 2.5, math.inf)}),),
        attacks=(), points=empty, evidence={"file": None, "sha256": None}, figures=empty, notes=("ε = 0.2",),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_the_document_survives_json_unchanged() -> None:
    document = report().to_dict()
    assert json.loads(report().to_json()) == document
    assert check_document(json.loads(dump_json(document))) == document
    assert document["schema_version"] == 1
    assert document["probes"][0]["value"] is None
    assert document["probes"][0]["details"] == {"scales": [1, 2.5, None]}
    assert "ε = 0.2" in report().to_json()


def test_the_same_report_gives_the_same_bytes() -> None:
    assert report().to_json() == report().to_json()
    assert report().to_json() != report(settings={"seed": 1}).to_json()


def test_the_evidence_is_named_by_its_digest() -> None:
    named = report().with_evidence("evidence.safetensors", b"bytes")
    assert named.evidence == {"file": "evidence.safetensors", "sha256": hashlib.sha256(b"bytes").hexdigest()}
    assert report().evidence["file"] is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        ({1: True, "a": None}, {"1": True, "a": None}),
        (-math.inf, None),
        (0.5, 0.5),
        ({"name\ud800": "a\0\udfffb\n"}, {"name\ufffd": "a\ufffd\ufffdb\n"}),
    ],
)
def test_plain(value: object, expected: object) -> None:
    assert plain(value) == expected


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), {"a": [complex(1)]}])
def test_what_json_cannot_hold_is_a_programming_error(value: object) -> None:
    with pytest.raises(TypeError, match="does not belong in a report"):
        plain(value)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "not a maskaudit report"),
        ("text", "not a maskaudit report"),
        ({}, "not a maskaudit report"),
        ({"schema_version": "1"}, 'whole number from 1, got "1"'),
        ({"schema_version": True}, "whole number"),
        ({"schema_version": 0}, "whole number from 1"),
        ({"schema_version": 2}, "upgrade maskaudit"),
        ({"schema_version": 1, "tool": {}}, "lacks the section"),
    ],
)
def test_a_foreign_document_is_refused(document: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_document(document)


@pytest.mark.parametrize("section", REQUIRED_SECTIONS)
def test_every_section_of_the_contract_is_required(section: str) -> None:
    document = report().to_dict()
    del document[section]
    with pytest.raises(InputError, match=section):
        check_document(document)


@pytest.mark.parametrize("fail_on", ["masked", "suspect", "inconclusive", "never"])
@pytest.mark.parametrize("claim", ["no_claim", "not_refuted", "refuted"])
@pytest.mark.parametrize("label", ["masked", "suspect", "inconclusive", "clear"])
def test_exit_status(label: str, claim: str, fail_on: str) -> None:
    """The contract: 1 for a finding at or above --fail-on or a refuted claim, else 3 or 0."""
    failing = {"masked": {"masked"}, "suspect": {"masked", "suspect"}, "inconclusive": {"masked", "suspect"}}
    if fail_on == "never":
        expected = 0
    elif label in failing[fail_on] or claim == "refuted":
        expected = 1
    else:
        expected = 3 if label == "inconclusive" else 0
    document = {"verdict": {"label": label}, "claim": {"status": claim}}
    assert exit_status(document, fail_on) == expected
    assert exit_status(document, fail_on, failed=True) == 4
