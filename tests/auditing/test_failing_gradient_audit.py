"""Whole audits of models whose gradient fails: masking in its plainest form, and of honest ones that resemble them."""

from __future__ import annotations

import pytest
from torch import nn

from maskaudit import api
from maskaudit.settings import AuditSettings
from tests.trace.failing_models import FAILING, Honest
from tests.trace.masked_models import Apply, Front

#: What decides: cross-entropy and the margin on the model's gradients, and a search without any.
PARTS = ("zero-gradient", "apgd-ce", "apgd-margin", "square", "repaired")
CASES = {case.name: case for case in FAILING}


@pytest.mark.parametrize("name", ["missing", "overwritten", "refusing"])
def test_a_failing_gradient_is_a_finding_and_the_search_goes_on(name: str, net: nn.Module) -> None:
    model = CASES[name].build(net).eval()
    audit = api.audit(model, settings=AuditSettings("quick", 40, select=PARTS))
    document = audit.report.to_dict()
    assert audit.failure is None
    assert document["verdict"]["label"] == "masked"
    mechanism = document["verdict"]["mechanisms"][0]
    assert mechanism["id"] == "failing-backward"
    assert mechanism["locations"][0]["file"].endswith("failing_models.py")
    white_box = [row for row in document["attacks"] if row["role"] in ("reference", "strong") and row["attempted"]]
    assert {"pgd", "apgd-margin"} <= {row["name"] for row in white_box}
    assert all(row["broken"] <= 2 and "gradient fails" in row["reason"] for row in white_box if row["kind"] != "sanity")
    assert document["accuracy"]["best_known"]["value"] < 0.1


def test_a_custom_function_with_a_right_backward_is_audited_like_any(net: nn.Module) -> None:
    model = Front(net, Apply(Honest.apply)).eval()
    document = api.audit(model, settings=AuditSettings("quick", 40, select=PARTS)).report.to_dict()
    assert document["verdict"]["label"] != "masked"
    assert document["verdict"]["mechanisms"] == []
    assert all("gradient fails" not in row["reason"] for row in document["attacks"])
