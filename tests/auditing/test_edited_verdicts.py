"""A verdict edited into another is not proven. That every audit proves itself: `tests/report/test_every_figure.py`,
where the same audits are made, and over the whole zoo here.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest

from maskaudit.zoo import ZOO

from .example_audits import example, failed, of_the_zoo

pytestmark = pytest.mark.heavy

#: Audits of each label, that take little time.
CHEAP = ("clear", "masked at gradient level", "a callable with hard labels", "few parts on request", "broken off")

#: The whole zoo takes a quarter of an hour; it is asked for with this variable.
WHOLE_ZOO = bool(os.environ.get("MASKAUDIT_WHOLE_ZOO"))


@pytest.mark.skipif(not WHOLE_ZOO, reason="the whole zoo takes a quarter of an hour: MASKAUDIT_WHOLE_ZOO=1")
@pytest.mark.parametrize("name", ZOO)
def test_every_audit_of_the_zoo_proves_itself(name: str, zoo_cache: Path) -> None:
    assert failed(of_the_zoo(name, 16)) == {}


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("label", ["clear", "masked", "inconclusive"])
def test_an_edited_label_does_not_follow(name: str, label: str, zoo_cache: Path) -> None:
    one = copy.deepcopy(example(name))
    if one.document["verdict"]["label"] != label:
        one.document["verdict"]["label"] = label
        assert {"report", "verdict"} <= set(failed(one))


def test_what_was_left_out_cannot_be_struck_from_the_report(zoo_cache: Path) -> None:
    one = copy.deepcopy(example("few parts on request"))
    one.document["settings"]["left_out"] = {}
    assert "verdict" in failed(one)
