"""Every audit's own proof holds right after it; a verdict edited into another does not."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest

from maskaudit.auditing.evidence import Check, read_evidence, verify_audit
from maskaudit.zoo import ZOO

from .own_audits import MAKERS, Own, of_the_zoo, own

pytestmark = pytest.mark.heavy

#: The whole zoo takes a quarter of an hour; it is asked for with this variable.
WHOLE_ZOO = bool(os.environ.get("MASKAUDIT_WHOLE_ZOO"))


def checks(one: Own) -> dict[str, Check]:
    found = verify_audit(one.document, read_evidence(one.evidence, "evidence"), one.loaded.module, one.loaded.sha256)
    return {check.name: check for check in found}


def failed(one: Own) -> dict[str, str]:
    return {name: check.detail for name, check in checks(one).items() if not check.holds}


@pytest.mark.parametrize("name", MAKERS)
def test_every_audit_proves_itself(name: str, zoo_cache: Path) -> None:
    one = own(name)
    unlike = {"model"} if one.document["target"]["source"].startswith("in memory") else set()
    assert set(failed(one)) <= unlike, failed(one)
    assert one.document["points"]["index"]


@pytest.mark.skipif(not WHOLE_ZOO, reason="the whole zoo takes a quarter of an hour: MASKAUDIT_WHOLE_ZOO=1")
@pytest.mark.parametrize("name", ZOO)
def test_every_audit_of_the_zoo_proves_itself(name: str, zoo_cache: Path) -> None:
    assert failed(of_the_zoo(name, 16)) == {}


def test_the_audits_are_what_they_are_called(zoo_cache: Path) -> None:
    labels = {name: own(name).document["verdict"]["label"] for name in MAKERS}
    assert labels["masked at gradient level"] == labels["masked at loss level"] == "masked"
    assert labels["clear"] == "clear"
    assert labels["broken off"] == labels["few parts on request"] == "inconclusive"
    levels = {name: own(name).document["masking"] for name in MAKERS}
    assert levels["masked at gradient level"]["gradient_level"]["value"] > 0.5
    assert levels["masked at loss level"]["loss_level"]["value"] > 0.5
    assert own("random").document["target"]["random"]
    assert own("broken off").document["partial"]["reason"]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("label", ["clear", "masked", "inconclusive"])
def test_an_edited_label_does_not_follow(name: str, label: str, zoo_cache: Path) -> None:
    one = copy.deepcopy(own(name))
    if one.document["verdict"]["label"] != label:
        one.document["verdict"]["label"] = label
        assert {"report", "verdict"} <= set(failed(one))


def test_what_was_left_out_cannot_be_struck_from_the_report(zoo_cache: Path) -> None:
    one = copy.deepcopy(own("few parts on request"))
    one.document["settings"]["left_out"] = {}
    assert "verdict" in failed(one)
