"""Exact statistics of the verdict: pure functions of counts, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import bdtrc, betainc, betaincinv, betaln  # scipy.stats takes half a second to import

from maskaudit.results import Rate

#: Two-sided confidence of every interval that a report shows.
CONFIDENCE = 0.99

#: Both parameters of Jeffreys' Beta distribution of a binomial rate.
_JEFFREYS = 0.5
#: Steps of a bisection that end within 2⁻⁴⁰ of a bound.
_HALVINGS = 40


def lower_bound(count: int, n: int, alpha: float) -> float:
    """One-sided exact lower bound at level 1 − alpha for a binomial rate (Clopper & Pearson 1934)."""
    _check(count, n)
    return 0.0 if count == 0 else float(betaincinv(count, n - count + 1, alpha))


def upper_bound(count: int, n: int, alpha: float) -> float:
    """One-sided exact upper bound at level 1 − alpha for a binomial rate (Clopper & Pearson 1934)."""
    _check(count, n)
    return 1.0 if count == n else float(betaincinv(count + 1, n - count, 1 - alpha))


def clopper_pearson(count: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Two-sided exact interval for `count` successes in `n` trials; (0, 1) for n = 0."""
    if n == 0 and count == 0:
        return 0.0, 1.0
    half = (1 - confidence) / 2
    return lower_bound(count, n, half), upper_bound(count, n, half)


def rate(count: int, n: int, confidence: float = CONFIDENCE) -> Rate:
    """A share with its exact interval; value 0 with interval (0, 1) when nothing was counted."""
    low, high = clopper_pearson(count, n, confidence)
    return Rate(value=count / n if n else 0.0, low=low, high=high, n=n)


def binomial_tail(count: int, n: int, p: float) -> float:
    """Chance of `count` or more successes in `n` trials of chance `p`; 1 for no trials."""
    return float(bdtrc(count - 1, n, p)) if count > 0 else 1.0


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact one-sided p-value that the first of two paired attacks breaks more (McNemar 1947, binomial form)."""
    total = only_first + only_second
    if total == 0:
        return 1.0
    return float(bdtrc(only_first - 1, total, 0.5))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values for several comparisons (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def evidence_above(count: int, n: int, limit: float) -> float:
    """Natural logarithm of the evidence against a binomial rate of at most `limit`, after `count` successes in `n`.

    The likelihood of the counts, averaged over rates above the limit by Jeffreys' distribution, over their likelihood
    at the limit. Where the rate is at most the limit that is a nonnegative supermartingale that begins at 1: the
    probability that it ever reaches 1/α, at whatever numbers of points one looks and for whatever reason one stops, is
    at most α.

    Source: Ville 1939, Étude critique de la notion de collectif; Robbins 1970, Statistical methods related to the law
    of the iterated logarithm; Howard, Ramdas, McAuliffe & Sekhon 2021, Time-uniform, nonparametric, nonasymptotic
    confidence sequences, section 3.
    """
    return evidence_below(n - count, n, 1 - limit)


def evidence_below(count: int, n: int, limit: float) -> float:
    """The same against a rate of at least `limit`, in favour of a smaller one; 0 where nothing was counted."""
    if n == 0:
        return 0.0
    _check(count, n)
    first, second = count + _JEFFREYS, n - count + _JEFFREYS
    inside = float(betainc(first, second, limit))
    if inside == 0.0:
        return -math.inf
    average = float(betaln(first, second) - betaln(_JEFFREYS, _JEFFREYS))
    average += math.log(inside / float(betainc(_JEFFREYS, _JEFFREYS, limit)))
    return average - count * math.log(limit) - (n - count) * math.log1p(-limit)


def upper_bound_at_any_look(count: int, n: int, alpha: float) -> float:
    """Upper bound of a binomial rate that holds at all looks at once at level 1 − alpha: 1 where there is no smaller.

    It is below every limit that `evidence_below` excludes at this level.
    """
    _check(count, n)
    if count == n:
        return 1.0
    wanted = -math.log(alpha)
    low, high = count / n, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if evidence_below(count, n, middle) >= wanted else (middle, high)
    return high


def _check(count: int, n: int) -> None:
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"expected 0 <= count <= n and n >= 1, got {count} of {n}")
