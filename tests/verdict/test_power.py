"""The power check: when a silent search counts as a search."""

from __future__ import annotations

import json

import pytest

from maskaudit.verdict.limits import MIN_KNOWN, MIN_POWER, POWER_ALPHA
from maskaudit.verdict.power import NOT_CHECKED, Power, check_power
from maskaudit.verdict.statistics import lower_bound


@pytest.mark.parametrize("method", ["recapture", "planted"])
@pytest.mark.parametrize(
    ("found", "known", "passed"),
    [(0, 0, None), (0, 20, False), (10, 20, False), (14, 20, False), (15, 20, True), (20, 20, True), (1, 1, False)],
)
def test_grading(method: str, found: int, known: int, passed: bool | None) -> None:
    power = check_power(method, found, known)
    assert power.passed is passed
    if known:
        assert passed is (lower_bound(found, known, POWER_ALPHA) > MIN_POWER)


def test_the_least_number_of_known_answers_can_pass() -> None:
    assert check_power("recapture", MIN_KNOWN, MIN_KNOWN).passed


def test_more_found_never_turns_pass_into_fail() -> None:
    passed = [bool(check_power("planted", found, 32).passed) for found in range(33)]
    assert passed == sorted(passed)
    assert passed[0] is False
    assert passed[-1] is True


@pytest.mark.parametrize(("found", "known", "settled"), [
    (0, 0, False), (18, 28, False), (9, 28, True), (40, 64, True), (34, 64, True), (20, 20, True), (0, 4, False),
])  # fmt: skip
def test_more_answers_are_asked_for_while_they_could_let_it_pass(found: int, known: int, settled: bool) -> None:
    assert check_power("recapture", found, known).settled is settled
    assert not NOT_CHECKED.settled


@pytest.mark.parametrize(
    ("power", "says"),
    [
        (check_power("recapture", 18, 20), "broke 18 of 20 points that are known to be breakable, so it had the power"),
        (check_power("planted", 3, 32), "found 3 of 32 examples planted inside the ball, too few"),
        (check_power("planted", 0, 0), "could not be checked"),
        (NOT_CHECKED, "was not checked"),
    ],
)
def test_wording(power: Power, says: str) -> None:
    assert says in power.sentence


@pytest.mark.parametrize("power", [check_power("planted", 30, 32, random_found=2), check_power("planted", 0, 0)])
def test_the_plain_form_is_json(power: Power) -> None:
    document = json.loads(json.dumps(power.to_dict()))
    assert document["passed"] is power.passed
    assert document["n"] == power.known
    assert document.get("random_search_found") == power.random_found
