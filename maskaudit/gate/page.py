"""The summary of a gate as one HTML page: no network, no script, links to the reports of the models."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from maskaudit.gate.summary import HEADER, notes, row, sentences
from maskaudit.report.html import environment


def html(summary: dict[str, Any]) -> str:
    """The page.

    Args:
        summary: what `maskaudit.gate.summary.build` gave.
    """
    template = environment().get_template("gate.html")
    return template.render(
        state="passed" if summary["status"] == 0 else "did not pass",
        header=HEADER,
        models=[_model(model) for model in summary["models"]],
        notes=notes(summary),
        status=summary["status"],
    )


def _model(model: dict[str, Any]) -> dict[str, Any]:
    name, *cells, gate = row(model)
    report = model["report"] and quote(model["report"].rpartition("/")[0]) + "/report.html"
    return {
        "name": name, "cells": cells, "gate": gate, "report": report, "status": model["status"],
        "sentences": sentences(model),
    }  # fmt: skip
