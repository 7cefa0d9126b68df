"""Baselines: what they match, what they may suppress, and what they never do."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import Any

import pytest

from maskaudit.gate.baselines import Baseline, Ruling, findings, rule_on, visible

from ..report import sample
from .stub import suspect

TODAY = date(2026, 11, 21)
LATER = date(2027, 1, 31)


#: What the sample says of a point without gradient, with other figures.
CAUSE = "Cross-entropy has no usable gradient on 9 of 20 points."


def baseline(rule: str, **fields: Any) -> Baseline:
    return Baseline(**{"reason": "known", "expires": LATER, **fields}, rule=rule)


def ruling(document: dict[str, Any], *baselines: Baseline) -> Ruling:
    numbered = [dataclasses.replace(one, number=i) for i, one in enumerate(baselines, start=1)]
    return rule_on(document, numbered, model="net", today=TODAY)


def test_findings_of_a_masked_report() -> None:
    found = findings(sample.masked().to_dict())
    assert [(f.kind, f.rule, f.module, f.cause) for f in found if f.kind != "probe"] == [
        ("verdict", "maskaudit-verdict", "fc2", "logit-scale"), ("claim", "maskaudit-claim", "", "claim"),
    ]  # fmt: skip
    assert {f.rule for f in found if f.kind == "probe"} == {
        "zero-gradient", "loss-decision-gradient-ratio", "unbounded-attack",
    }  # fmt: skip
    assert findings(sample.clear().to_dict()) == ()


@pytest.mark.parametrize(
    ("fields", "suppressed"),
    [
        ({}, 2),
        ({"module": "fc2"}, 2),
        ({"module": "fc1"}, 0),
        ({"op": "Linear"}, 2),
        ({"cause": "The logit margin has no usable gradient on −7.0e9 of 8 points."}, 1),  # figures do not matter
        ({"cause": "The logit margin had no usable gradient on 3 of 196 points."}, 0),
        ({"model": "net"}, 2),
        ({"model": "another"}, 0),
        ({"expires": TODAY}, 2),
        ({"expires": date(2026, 11, 20)}, 0),
    ],
)
def test_what_a_baseline_matches(fields: dict[str, Any], suppressed: int) -> None:
    judged = ruling(sample.masked().to_dict(), baseline("zero-gradient", **fields))
    assert sum(by is not None and found.kind == "probe" for found, by in judged.findings) == suppressed


def test_lines_and_values_are_no_part_of_the_key() -> None:
    document = sample.masked().to_dict()
    key = baseline("zero-gradient", module="fc2", op="Linear", cause=CAUSE)
    (finding,) = (probe for probe in document["probes"] if probe["rule"] == "zero-gradient")
    finding["value"] = 0.9
    finding["findings"][0]["location"]["line"] = 400
    finding["findings"][0]["location"]["file"] = "moved.py"
    assert ruling(document, key).accepted("probe") == ()
    assert ruling(document, key).used == {1}
    assert sum(by is not None for _, by in ruling(document, key).findings) == 1


def test_a_proven_verdict_and_a_refuted_claim_cannot_be_suppressed() -> None:
    document = sample.masked().to_dict()
    judged = ruling(document, baseline("maskaudit-verdict"), baseline("maskaudit-claim"))
    assert (judged.label, judged.claim) == ("masked", "refuted")
    assert len(judged.notes) == 2
    assert all("without accept_masked = true" in note for note in judged.notes)


def test_unless_it_is_stated() -> None:
    document = sample.masked().to_dict()
    for rule in ("maskaudit-verdict", "logit-scale"):  # the verdict's own name, or the mechanism's
        judged = ruling(document, baseline(rule, accept_masked=True))
        assert (judged.label, judged.claim) == ("clear", "refuted")
    judged = ruling(document, baseline("maskaudit-claim", accept_masked=True))
    assert (judged.label, judged.claim) == ("masked", "not_refuted")
    other = ruling(document, baseline("maskaudit-verdict", cause="saturation", accept_masked=True))
    assert other.label == "masked"


def test_every_mechanism_has_to_be_accepted() -> None:
    document = sample.masked().to_dict()
    more = {**document["verdict"]["mechanisms"][0], "id": "saturation", "title": "Saturated"}
    document["verdict"]["mechanisms"].append(more)
    known = baseline("maskaudit-verdict", cause="logit-scale", accept_masked=True)
    assert ruling(document, known).label == "masked"
    both = ruling(document, known, baseline("saturation", accept_masked=True))
    assert both.label == "clear"


def test_a_suspect_can_be_suppressed_and_expires() -> None:
    document = suspect().to_dict()
    assert ruling(document, baseline("maskaudit-verdict")).label == "clear"
    gone = ruling(document, baseline("maskaudit-verdict", expires=date(2026, 1, 1)))
    assert gone.label == "suspect"
    assert "expired on 2026-01-01" in gone.notes[0]


def test_a_verdict_without_mechanism_has_a_key_too() -> None:
    document = suspect().to_dict()
    document["verdict"]["mechanisms"] = []
    assert ruling(document, baseline("maskaudit-verdict", cause="suspect")).label == "clear"


def test_inconclusive_is_never_suppressed() -> None:
    judged = ruling(sample.inconclusive().to_dict(), baseline("maskaudit-verdict", accept_masked=True))
    assert judged.label == "inconclusive"


def test_visible_leaves_out_what_is_suppressed() -> None:
    document = sample.masked().to_dict()
    judged = ruling(document, baseline("unbounded-attack"), baseline("zero-gradient", cause=CAUSE))
    shown = {probe["rule"]: probe for probe in visible(document, judged)["probes"]}
    assert shown["unbounded-attack"]["status"] == "not_applicable"
    assert shown["unbounded-attack"]["reason"] == "accepted until 2027-01-31: known"
    assert shown["zero-gradient"]["status"] == "finding"
    assert [item["message"] for item in shown["zero-gradient"]["findings"]] == [
        "The logit margin has no usable gradient on 3 of 196 points."
    ]
    assert document == sample.masked().to_dict(), "the report itself stays as it was"
