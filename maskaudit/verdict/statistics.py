"""Exact statistics of the verdict: pure functions of counts, no torch."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.special import bdtrc, betaincinv  # scipy.stats has the same by name, and takes half a second to import

from maskaudit.results import Rate

#: Two-sided confidence of every interval that a report shows.
CONFIDENCE = 0.99


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


def spend(alpha: float, looks: int) -> list[float]:
    """Error level for each of `looks` sequential looks, adding up to alpha (Bonferroni: valid for any dependence)."""
    if looks < 1:
        raise ValueError(f"expected looks >= 1, got {looks}")
    return [alpha / looks] * looks


def _check(count: int, n: int) -> None:
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"expected 0 <= count <= n and n >= 1, got {count} of {n}")
