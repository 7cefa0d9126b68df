"""Grading against limits."""

from __future__ import annotations

import pytest

from maskaudit.verdict.limits import LIMITS, Limit


def test_direction_is_strict_and_nan_never_raises() -> None:
    above, below = Limit(0.5, "above", "share", "here"), Limit(0.5, "below", "cosine", "here")
    assert above.exceeded(0.6)
    assert not above.exceeded(0.5)
    assert below.exceeded(0.4)
    assert not below.exceeded(0.5)
    assert not above.exceeded(float("nan"))
    assert not below.exceeded(float("nan"))


def test_paired_gaps_are_graded_on_the_lower_end_of_the_interval() -> None:
    limit = LIMITS["gradient-free-gap"]
    assert limit.on == "low"
    assert not limit.exceeded(0.2, 0.01)
    assert limit.exceeded(0.2, 0.1)


@pytest.mark.parametrize("rule", LIMITS)
def test_every_limit_has_unit_and_source(rule: str) -> None:
    assert LIMITS[rule].unit
    assert LIMITS[rule].source
