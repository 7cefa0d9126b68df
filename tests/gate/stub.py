"""Audits that cost nothing: prepared reports in place of real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from maskaudit.auditing.document import Keeper
from maskaudit.auditing.runner import Audit
from maskaudit.errors import MaskauditError, ModelError
from maskaudit.gate.config import GateEntry
from maskaudit.results import AuditReport, Claim
from maskaudit.settings import Listener

from ..report import sample


def suspect() -> AuditReport:
    """The masked sample with a verdict that is not proven, and without a claim."""
    report = sample.masked()
    verdict = dataclasses.replace(report.verdict, label="suspect", sentence="The gradients are uninformative.")
    return dataclasses.replace(report, verdict=verdict, claim=Claim(None, "no_claim"))


def no_claim(report: AuditReport) -> AuditReport:
    """The same report without a claim."""
    return dataclasses.replace(report, claim=Claim(None, "no_claim"))


REPORTS = {
    "masked": sample.masked,
    "masked-unclaimed": lambda: no_claim(sample.masked()),
    "suspect": suspect,
    "clear": sample.clear,
    "inconclusive": sample.inconclusive,
    "late": sample.inconclusive,
}


class StubAudit:
    """Gives the prepared report whose name is the model's, or an error of `errors`; `late` breaks off."""

    def __init__(self, errors: Mapping[str, MaskauditError] | None = None) -> None:
        self.errors = errors or {}
        self.seen: list[str] = []

    def __call__(self, entry: GateEntry, folder: Path | None, on_event: Listener, keep: Keeper) -> Audit:
        model = entry.request.model
        self.seen.append(model)
        if model in self.errors:
            raise self.errors[model]
        report = REPORTS[model]()
        report = dataclasses.replace(report, settings={**report.settings, "fail_on": entry.fail_on})
        return Audit(report, b"evidence", ModelError("out of luck") if model == "late" else None)


def write_config(folder: Path, *models: str, extra: str = "", name: str = "maskaudit.toml") -> Path:
    """A configuration that lists models by name, with further TOML behind them."""
    prefix = "tool.maskaudit." if name == "pyproject.toml" else ""
    tables = [f'[[{prefix}models]]\nmodel = "{model}"\n' for model in models]
    file = folder / name
    file.write_text("\n".join([*tables, extra]), encoding="utf-8")
    return file
