"""One SARIF log and one JUnit file for all models of a gate, without what the baselines accept."""

from __future__ import annotations

from typing import Any

from maskaudit.gate.baselines import FindingKind, visible
from maskaudit.gate.running import GateOutcome, GateResult
from maskaudit.report import coerce, junit, sarif

#: What a baseline can only accept explicitly, with its rule in SARIF.
_PROVEN: dict[FindingKind, str] = {"verdict": sarif.VERDICT_RULE, "claim": sarif.CLAIM_RULE}


def merged_sarif(result: GateResult) -> str:
    """SARIF 2.1.0 with one run per model, each of a category of its own, as code scanning wants it.

    Accepted results are left out, since code scanning would show them. A model that could not be
    audited is a run whose execution was not successful.
    """
    return sarif.log([_run(outcome) for outcome in result.outcomes])


def _run(outcome: GateOutcome) -> dict[str, Any]:
    if outcome.document is None or outcome.ruling is None:
        note = {"level": "error", "message": {"text": coerce.text(outcome.error, "not audited")}}
        run: dict[str, Any] = {
            "tool": {"driver": {"name": "maskaudit"}},
            "invocations": [{"executionSuccessful": False, "toolExecutionNotifications": [note]}],
            "results": [],
        }
    else:
        accepted = {rule for kind, rule in _PROVEN.items() if outcome.ruling.accepted(kind)}
        run = sarif.run(visible(outcome.document, outcome.ruling), without=accepted)
    return {**run, "automationDetails": {"id": f"maskaudit/{outcome.entry.folder}/"}}


def merged_junit(result: GateResult) -> str:
    """JUnit XML with one test suite per model; a failure in it and the gate's exit status agree."""
    return junit.written([_suite(outcome) for outcome in result.outcomes], "maskaudit gate")


def _suite(outcome: GateOutcome) -> junit.Suite:
    name = coerce.text(outcome.entry.name)
    prefix = f"{name}.maskaudit"
    if outcome.document is None or outcome.ruling is None:
        suite = junit.Suite(name, prefix=prefix)
        suite.error(coerce.text(outcome.error, "not audited"), "not audited")
        return suite
    found = {kind: outcome.ruling.accepted(kind) for kind in _PROVEN}
    accepted: dict[str, str] = {
        kind: f"accepted until {baselines[0].expires}: {coerce.text(baselines[0].reason)}"
        for kind, baselines in found.items()
        if baselines
    }
    suite = junit.Suite.of(visible(outcome.document, outcome.ruling), name=name, prefix=prefix, accepted=accepted)
    if outcome.error:
        suite.error(coerce.text(outcome.error), "model failed")
    return suite
