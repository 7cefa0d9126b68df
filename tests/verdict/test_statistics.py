"""Exact statistics against scipy and against examples worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from maskaudit.verdict.statistics import (
    clopper_pearson,
    evidence_above,
    evidence_below,
    holm,
    lower_bound,
    mcnemar,
    rate,
    upper_bound,
    upper_bound_at_any_look,
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


@pytest.mark.parametrize("limit", [0.02, 0.05, 0.12, 0.5])
@pytest.mark.parametrize("n", [1, 30, 300])
def test_the_evidence_is_a_martingale(limit: float, n: int) -> None:
    """Its mean at the limit is 1 after any number of points, and smaller inside the null hypothesis."""
    counts = range(n + 1)
    for evidence, inside in ((evidence_above, 0.9 * limit), (evidence_below, 1.1 * limit)):
        values = [evidence(k, n, limit) for k in counts]
        for p, mean in ((limit, 1.0), (inside, None)):
            expected = float(np.exp(stats.binom.logpmf(counts, n, p) + values).sum())
            assert expected == pytest.approx(1.0) if mean else expected < 1.0
    assert evidence_above(0, 0, limit) == evidence_below(0, 0, limit) == 0.0


@pytest.mark.parametrize(("k", "n", "limit"), [(3, 30, 0.05), (0, 50, 0.12), (20, 40, 0.12)])
def test_the_evidence_is_the_average_likelihood_over_that_at_the_limit(k: int, n: int, limit: float) -> None:
    def prior(p: float) -> float:
        return float(stats.beta.pdf(p, 0.5, 0.5))

    def likelihood(p: float) -> float:
        return float(p**k * (1 - p) ** (n - k))

    above = integrate.quad(lambda p: prior(p) * likelihood(p), limit, 1)[0] / stats.beta.sf(limit, 0.5, 0.5)
    below = integrate.quad(lambda p: prior(p) * likelihood(p), 0, limit)[0] / stats.beta.cdf(limit, 0.5, 0.5)
    assert math.exp(evidence_above(k, n, limit)) == pytest.approx(above / likelihood(limit), rel=1e-5)
    assert math.exp(evidence_below(k, n, limit)) == pytest.approx(below / likelihood(limit), rel=1e-5)


def test_an_error_is_as_rare_as_declared_however_often_one_looks() -> None:
    """Looking after every single one of 400 points, at a rate that is just the limit."""
    generator, alpha, crossed = np.random.default_rng(0), 0.05, 0
    for _ in range(400):
        counts = np.cumsum(generator.random(400) < 0.1)
        crossed += any(evidence_above(int(k), n, 0.1) >= -math.log(alpha) for n, k in enumerate(counts, 1))
    assert crossed / 400 <= stats.binom.ppf(0.999, 400, alpha) / 400


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 60), (5, 60), (30, 60), (60, 60)])
def test_the_bound_for_any_look_is_where_the_evidence_ends(k: int, n: int) -> None:
    bound = upper_bound_at_any_look(k, n, 0.01)
    assert upper_bound(k, n, 0.01) <= bound + 1e-9 <= 1 + 1e-9
    if bound < 1 - 1e-6:
        assert evidence_below(k, n, bound + 1e-6) >= -math.log(0.01)
        assert evidence_below(k, n, bound - 1e-6) < -math.log(0.01)


@pytest.mark.parametrize("rates", [(0.0, 0.2), (0.02, 0.05, 0.23), (0.1, 0.1)])
def test_evidence_from_points_drawn_by_class(rates: tuple[float, ...]) -> None:
    """After whole rounds over the classes the evidence against their mean rate is 1 at most on average."""
    limit = sum(rates) / len(rates)
    chance = [1.0]
    for n, share in enumerate(rates * 20, 1):
        chance = [a * (1 - share) + b * share for a, b in zip([*chance, 0.0], [0.0, *chance], strict=True)]
        if n % len(rates) == 0:
            assert math.fsum(p * math.exp(evidence_above(k, n, limit)) for k, p in enumerate(chance)) <= 1 + 1e-9
            assert math.fsum(p * math.exp(evidence_below(k, n, limit)) for k, p in enumerate(chance)) <= 1 + 1e-9
