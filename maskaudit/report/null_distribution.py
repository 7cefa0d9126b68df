"""The distribution that the verdict was tested against, one figure per level of masking.

The judge calls masking proven when the counts are evidence enough, at whatever look, that the
hidden share lies above the slack that healthy models show (`maskaudit.verdict.statistics`);
in older reports the exact one-sided lower bound decided at each of a few looks, and shares were of the correct points.
Had a model of exactly that slack been audited, the number of hidden points would follow the binomial
distribution drawn here.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, gammaln, logsumexp, xlog1py, xlogy  # scipy.stats takes half a second to import

from maskaudit.report import coerce, words
from maskaudit.report.canvas import COLOURS, FONT, bare_axes, drawing, svg
from maskaudit.results import Rate
from maskaudit.verdict.numerals import SUPERSCRIPT
from maskaudit.verdict.rules import ANY_LOOK
from maskaudit.verdict.statistics import evidence_above, evidence_below

#: Most points for which the distribution is drawn.
_LARGEST_N = 100_000
#: Bars rarer than this are not drawn.
_RARE = 1e-6

_LEVELS = (("gradient_level", "Gradient level"), ("loss_level", "Loss level"))


@dataclass(frozen=True)
class NullTest:
    """One level's test: `hidden` of `n` points, against a share of `slack` at error level `alpha`.

    Attributes:
        critical: fewest hidden points that prove masking; above `n` where no number can.
        exponent: log10 of the probability of at least `hidden` points under the slack.
        screen: whether the screen fired for this level, which decides the slack.
        clear_limits: shares that must not be hidden where this level is to be called clear, in words; "" if unknown.
        clear_at: most hidden points with which this level may still be called clear; -1 for none.
        unproven: why no number of hidden points proves anything, since attacks did not run; empty where they did.
        any_look: whether `alpha` is the error level of all looks together; else that of a single one.
    """

    level: str
    title: str
    n: int
    hidden: int
    slack: float
    alpha: float
    critical: int
    exponent: float
    screen: bool
    clear_limits: str
    clear_at: int
    unproven: str = ""
    any_look: bool = False

    @property
    def proven(self) -> bool:
        """Whether the observed count reaches the critical one, and attacks that could lower it have run."""
        return self.hidden >= self.critical and not self.unproven

    @property
    def chance(self) -> str:
        """The probability of a count this high under the slack, in words."""
        if self.exponent >= -3:
            return f"{10**self.exponent:.2g}"
        return f"about 10{f'{self.exponent:.0f}'.translate(SUPERSCRIPT)}"

    @property
    def summary(self) -> str:
        """What the figure shows, in one or two sentences."""
        needed = f"{self.critical} would prove masking" if self.critical <= self.n else "no count could prove masking"
        if self.unproven:
            needed = f"no count proves masking, since {self.unproven}"
        return (
            f"{words.plural(self.hidden, 'hidden point')} of {self.n:,} drawn; {needed}. If a healthy model hid "
            f"{words.percent(self.slack)} of points, a count this high would have probability {self.chance}."
        )


def read(document: dict[str, Any]) -> tuple[NullTest, ...]:
    """The tests that the document's rule and rates describe; empty where it does not say."""
    masking = coerce.mapping(document["masking"])
    rule, screen = coerce.mapping(masking.get("rule")), coerce.mapping(masking.get("screen"))
    alpha, looks = coerce.number(rule.get("alpha")), coerce.count(rule.get("looks"))
    at_any_look = rule.get("test") == ANY_LOOK
    if alpha is None or not (0 < alpha < 1 and (at_any_look or 1 <= looks <= _LARGEST_N)):
        return ()
    bounds = _AtAnyLook(alpha / 2) if at_any_look else _AtOneLook(alpha / (2 * looks))
    tests = []
    for level, title in _LEVELS:
        share, slack = coerce.rate(masking.get(level)), coerce.slack(rule, screen, level)
        own = coerce.mapping(coerce.mapping(rule.get("limits")).get(level))
        drawn = coerce.count(own.get("drawn")) or (share.n if share else 0)
        if share is not None and 1 <= share.n <= drawn <= _LARGEST_N and slack is not None and 0 < slack < 1:
            limits = {"the points": (drawn, coerce.number(own.get("clear_limit", rule.get("clear_limit")))),
                      "the correct ones": (share.n, coerce.number(rule.get("clear_limit_of_correct")))}  # fmt: skip
            fired = slack != coerce.number(rule.get("gross_slack"))
            test = _test(level, title, share, drawn, slack, bounds, fired, limits)
            tests.append(replace(test, unproven=coerce.text(own.get("unproven")), any_look=at_any_look))
    return tuple(tests)


@dataclass(frozen=True)
class _AtOneLook:
    """Counts that the exact binomial test at this level asks for."""

    alpha: float

    def critical(self, n: int, slack: float) -> int:
        return _upper_quantile(n, slack, self.alpha) + 1

    def clear_at(self, n: int, limit: float) -> int:
        return _lower_quantile(n, limit, self.alpha) - 1


@dataclass(frozen=True)
class _AtAnyLook(_AtOneLook):
    """Counts that are evidence enough at this level, at whatever look."""

    def critical(self, n: int, slack: float) -> int:
        needed = -math.log(self.alpha)
        return bisect_left(range(n + 1), True, key=lambda count: evidence_above(count, n, slack) >= needed)

    def clear_at(self, n: int, limit: float) -> int:
        needed = -math.log(self.alpha)
        return bisect_left(range(n + 1), True, key=lambda count: evidence_below(count, n, limit) < needed) - 1


def _test(
    level: str, title: str, share: Rate, n: int, slack: float, bounds: _AtOneLook, fired: bool,
    limits: dict[str, tuple[int, float | None]],
) -> NullTest:  # fmt: skip
    hidden = round(share.value * share.n)
    critical = bounds.critical(n, slack)
    exponent = float(logsumexp(_log_chances(np.arange(hidden, n + 1), n, slack))) / math.log(10)
    known = {of: (among, limit) for of, (among, limit) in limits.items() if limit is not None and 0 < limit < 1}
    clear_at = min((bounds.clear_at(among, limit) for among, limit in known.values()), default=-1)
    named = " and ".join(f"{words.percent(limit)} of {of}" for of, (_, limit) in known.items())
    return NullTest(
        level, title, n, hidden, slack, bounds.alpha, critical, max(exponent, -9999.0), fired, named, clear_at
    )


def _log_chances(counts: NDArray[np.int64], n: int, share: float) -> NDArray[np.float64]:
    """Natural logarithms of the binomial probabilities of `counts` among `n`."""
    ways = gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1)
    return ways + xlogy(counts, share) + xlog1py(n - counts, -share)


def _lower_quantile(n: int, share: float, alpha: float) -> int:
    """The smallest count that the binomial distribution stays at or below with a probability of at least `alpha`."""
    return int(np.argmax(bdtr(np.arange(n + 1), n, share) >= alpha))


def _upper_quantile(n: int, share: float, alpha: float) -> int:
    """The smallest count that it exceeds with a probability of at most `alpha`."""
    return int(np.argmax(bdtrc(np.arange(n + 1), n, share) <= alpha))


def draw(test: NullTest) -> Markup:
    """The distribution, the critical count and the observed count."""
    first, last = _lower_quantile(test.n, test.slack, _RARE), _upper_quantile(test.n, test.slack, _RARE)
    counts = np.arange(first, last + 1)
    stride = max(1, len(counts) // 400)
    counts = counts[::stride]
    heights = np.exp(_log_chances(counts, test.n, test.slack))
    right = max(last, test.hidden, test.critical if test.critical <= test.n else 0) * 1.12 + 2
    with drawing():
        figure, axes = bare_axes(190, (0.03, 0.235, 0.94, 0.57))
        axes.set_yticks([])
        axes.set_xlim(-0.02 * right, right)
        top = float(heights.max())
        axes.set_ylim(0, 1.05 * top)
        axes.fill_between(counts, heights, step="mid", color=COLOURS["soft"], alpha=0.45, lw=0)
        if test.critical <= test.n:
            axes.axvline(test.critical - 0.5, color=COLOURS["ink"], lw=1.2, ls=(0, (4, 3)))
            _name(axes, test.critical, f"proof from {test.critical:,}", 1.04, "ink", right)
        axes.plot([test.hidden, test.hidden], [0, 0.8 * top], color=COLOURS["tone"], lw=2.4, solid_capstyle="butt")
        axes.plot(test.hidden, 0.8 * top, "D", color=COLOURS["tone"], ms=8, clip_on=False)
        _name(axes, test.hidden, f"observed: {test.hidden:,}", 1.17, "tone", right)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.set_xlabel(f"Hidden points, of {test.n:,}", color=COLOURS["soft"], fontsize=FONT)
        return svg(figure, f"null-{test.level.replace('_', '-')}", f"{test.title}: what was tested", test.summary)


def _name(axes: Any, x: float, text: str, height: float, colour: str, right: float) -> None:
    """A name above the axes, anchored so that it stays inside the figure."""
    anchor = "left" if x < 0.2 * right else ("right" if x > 0.8 * right else "center")
    axes.text(
        x, height, text, transform=axes.get_xaxis_transform(), ha=anchor, va="bottom",
        color=COLOURS[colour], fontsize=FONT - 0.5,
    )  # fmt: skip
