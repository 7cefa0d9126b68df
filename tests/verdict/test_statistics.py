"""Exact statistics against scipy and against examples worked by hand."""

from __future__ import annotations

import pytest
from scipy import stats

from maskaudit.verdict.statistics import (
    clopper_pearson,
    holm,
    lower_bound,
    mcnemar,
    rate,
    spend,
    upper_bound,
)

COUNTS = [(0, 1), (1, 1), (0, 20), (20, 20), (1, 20), (19, 20), (37, 200), (400, 800), (3, 1600)]


@pytest.mark.parametrize(("count", "n"), COUNTS)
@pytest.mark.parametrize("confidence", [0.9, 0.99, 0.9999])
def test_two_sided_interval(count: int, n: int, confidence: float) -> None:
    expected = stats.binomtest(count, n).proportion_ci(confidence, method="exact")
    assert clopper_pearson(count, n, confidence) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("count", "n"), COUNTS)
@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.01 / 6])
def test_one_sided_bounds(count: int, n: int, alpha: float) -> None:
    low = stats.binomtest(count, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
    high = stats.binomtest(count, n, alternative="less").proportion_ci(1 - alpha, method="exact").high
    assert lower_bound(count, n, alpha) == pytest.approx(low)
    assert upper_bound(count, n, alpha) == pytest.approx(high)


@pytest.mark.parametrize(("n", "p"), [(20, 0.05), (60, 0.5), (200, 0.15)])
def test_the_bounds_err_no_more_often_than_they_say(n: int, p: float) -> None:
    """Summed exactly over the binomial distribution, not simulated."""
    alpha = 0.01
    too_high = sum(stats.binom.pmf(k, n, p) for k in range(n + 1) if lower_bound(k, n, alpha) > p)
    too_low = sum(stats.binom.pmf(k, n, p) for k in range(n + 1) if upper_bound(k, n, alpha) < p)
    assert 0 < too_high <= alpha
    assert too_low <= alpha


def test_orders_of_magnitude_of_the_design() -> None:
    """No success in 200 points bounds the rate at about 1.5 % (one-sided 95 %)."""
    assert upper_bound(0, 200, 0.05) == pytest.approx(0.015, abs=0.0002)


def test_nothing_counted_says_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    nothing = rate(0, 0)
    assert (nothing.value, nothing.low, nothing.high, nothing.n) == (0.0, 0.0, 1.0, 0)


def test_a_rate_lies_in_its_interval() -> None:
    for count, n in COUNTS:
        share = rate(count, n)
        assert 0 <= share.low <= share.value <= share.high <= 1
        assert (share.value, share.n) == (count / n, n)


@pytest.mark.parametrize("function", [lower_bound, upper_bound])
@pytest.mark.parametrize(("count", "n"), [(-1, 10), (11, 10), (0, 0), (1, 0)])
def test_impossible_counts(function: object, count: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {count} of {n}"):
        function(count, n, 0.05)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [(0, 0, 1.0), (1, 0, 0.5), (5, 0, 1 / 32), (0, 5, 1.0), (3, 1, 5 / 16), (8, 2, 56 / 1024)],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, expected: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(expected)
    if only_first + only_second:
        p = stats.binomtest(only_first, only_first + only_second, alternative="greater").pvalue
        assert mcnemar(only_first, only_second) == pytest.approx(p)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # the textbook example
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.2, 0.04], [0.2, 0.08]),
        ([0.01, 0.01, 0.01], [0.03, 0.03, 0.03]),
        ([0.3], [0.3]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values: list[float], expected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("looks", [1, 2, 3, 7])
def test_the_error_level_is_spent_once(looks: int) -> None:
    assert len(spend(0.01, looks)) == looks
    assert sum(spend(0.01, looks)) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="looks >= 1"):
        spend(0.01, 0)
