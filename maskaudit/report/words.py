"""How figures and names are put into words, once for all formats.

Wording follows the design: a verdict is a claim about the search, never about the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from maskaudit.results import Rate
from maskaudit.verdict.numerals import number as number
from maskaudit.verdict.numerals import power as power

#: Verdict labels, worst first, with the words of the gradient-health axis.
HEALTH = {
    "masked": "Masked",
    "suspect": "Suspect",
    "inconclusive": "Not decided",
    "clear": "No masking found",
}

#: What each label states, for people who meet it for the first time.
LABEL_MEANING = {
    "masked": "Attacks that do not rely on this model's gradients, or on the usual loss, "
    "broke points that the usual attacks left unbroken.",
    "suspect": "The gradients are uninformative here, yet no attack proved that robustness is overstated.",
    "inconclusive": "The audit cannot say; the reasons state what was missing.",
    "clear": "No masking was found by what ran. This is a statement about the search, not a guarantee about the model.",
}

#: Roles in the order of the attack table: heading and explanation.
ROLES = {
    "reference": (
        "Reference",
        "What a claim is commonly computed with: gradients of cross-entropy. It decides nothing alone.",
    ),
    "strong": (
        "Strong gradient attacks",
        "Further white-box attacks: other losses, step sizes, restarts and more steps.",
    ),
    "challenger": (
        "Challengers",
        "Do not trust the model's gradients: score- and decision-based search, transfer from other models, noise.",
    ),
    "repaired": (
        "Repaired",
        "Gradient attacks through a copy with a repaired backward pass; every example is scored on the original model.",
    ),
    "second_opinion": ("Second opinion", "An independent implementation, on a sample of the points not broken yet."),
    "exact": (
        "Search by bounds",
        "Branch and bound over a small network's rectifiers: counts for the best known accuracy, and for no level.",
    ),
    "sanity": (
        "Sanity check",
        "May leave the ball on purpose, so it should break every point; it counts for nothing else.",
    ),
    "other": ("Other", "Rows whose role this version does not know."),
}

CLAIM = {"refuted": "refuted", "not_refuted": "not refuted", "no_claim": "no claim"}

#: The rows of the accuracy axis in the order shown: key, name, what it is.
ACCURACY = (
    ("clean", "Clean", "without an attack"),
    ("reference", "Reference attack", "what a claim is commonly computed with"),
    ("strong_reference", "Strong gradient attacks", "the model's gradients, any loss"),
    ("best_known", "Best known", "every attack together"),
    ("certified", "Certified lower bound", "no attack inside the ball can go below"),
)

#: Units that mark a value as a share of something.
_SHARES = ("share", "fraction", "rate")


def percent(value: float) -> str:
    """`0.715` → `71.5%`; a share that is small but not zero never reads 0.0 %, nor one below 1 as 100 %."""
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{100 * value:.1f}%"


def interval(rate: Rate, dash: str = "–") -> str:
    """The interval of a rate, `68.2–74.6%`; empty where the document gives none."""
    if not rate.n:
        return ""
    return f"{100 * rate.low:.1f}{dash}{100 * rate.high:.1f}%"


def rate(rate: Rate | None, dash: str = "–", missing: str = "not measured") -> str:
    """A rate with its interval, `71.5% [64.9–77.6%]`."""
    if rate is None:
        return missing
    span = interval(rate, dash)
    return f"{percent(rate.value)} [{span}]" if span else percent(rate.value)


def is_share(unit: str) -> bool:
    """Whether a probe's unit says that its value is a share."""
    return unit.lower().startswith(_SHARES)


def quantity(value: float | None, unit: str, share: bool) -> str:
    """A probe's figure with its unit: `72.0% of points` for a share, `6 × 10⁻⁸ times` for a ratio as log10, else
    `0.0213 margin units`; empty for None."""
    if value is None:
        return ""
    if unit.startswith("log10"):
        return f"{power(value)} times {unit.removeprefix('log10').strip()}".strip()
    if not share:
        return f"{number(value)} {unit}".strip()
    rest = unit.partition(" ")[2] if is_share(unit) else unit
    return f"{percent(value)} {rest}".strip()


def radius(eps: float | None) -> str:
    """ε as people write it: a short decimal, or a number of grey levels (`8/255`)."""
    if eps is None:
        return "unknown"
    short = f"{eps:.4g}"
    levels = eps * 255
    if float(short) != eps and levels >= 0.5 and abs(levels - round(levels)) < 1e-4:
        return f"{round(levels)}/255 (about {eps:.3g})"
    return short


def seconds(value: float | None) -> str:
    """A duration: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if value is None or value < 0:
        return ""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(value: float | None) -> str:
    """Bytes of memory: `312 MiB`, `4.2 GiB`."""
    if not value or value < 0:
        return ""
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def plural(n: int, one: str, many: str = "") -> str:
    """A number with its noun: `1 probe`, `12 probes`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def joined(parts: Iterable[str], separator: str = ", ") -> str:
    """The non-empty parts, joined."""
    return separator.join(part for part in parts if part)


#: Terms and their meaning: the glossary of the HTML report, and of `docs/glossary.md`, which is written from it.
TERMS = (
    (
        "adversarial example",
        "An input inside the ball and the bounds that the model misclassifies, found from one that it classifies "
        "correctly; it evades the model, and the point is broken.",
    ),
    ("ball", "All inputs within the distance ε of a point, in the norm of the threat model."),
    ("baseline", "A known finding that a gate accepts until a date."),
    ("best known", "Robust accuracy after every attack of the audit: an upper bound of the true value."),
    ("black box", "A model that only answers; its gradients are not looked for, and no verdict on them is given."),
    ("broken", "An adversarial example for the point was found and scored again by code that did not make it."),
    (
        "budget",
        "How much an audit may spend: quick, standard and thorough set points, gradient steps and queries; a time "
        "(2m) or a number of passes (1e6) ends the audit once it is spent.",
    ),
    ("certified", "A proven lower bound of robust accuracy, where one is known."),
    (
        "challenger",
        "An attack that does not trust the model's gradients: search by scores or by decisions, transfer, noise; "
        "or gradients of a repaired copy, which the table of attacks shows under a role of its own.",
    ),
    ("claim", "A robust accuracy that somebody states; the audit refutes it or does not."),
    ("draw", "One answer of a model that answers at random; attacks follow means over several draws."),
    (
        "evidence",
        "The file of adversarial examples. In the test of a level: how much likelier the counts are if more points "
        "are hidden than the limit allows.",
    ),
    ("finding", "A measurement past its limit; it says that something looks wrong and decides nothing alone."),
    (
        "gradient level",
        "The share of compared points that challengers break and no white-box attack does: the gradients hide the way.",
    ),
    (
        "hidden point",
        "A point that only challengers break (gradient level), or that white-box attacks break but none on cross-"
        "entropy (loss level).",
    ),
    (
        "look",
        "A number of points at which the audit considers its verdict, each larger than the one before. The test "
        "holds at all looks together, so the audit may stop at any of them.",
    ),
    (
        "loss level",
        "The share of compared points that white-box attacks break, but not on cross-entropy, which is flat or "
        "leads elsewhere.",
    ),
    ("masked", "Gradients or the loss hide that the model is weaker than the usual attack says."),
    (
        "matched budgets",
        "Equal effort of white-box attacks on cross-entropy and on other losses, wherever the two are compared.",
    ),
    ("mechanism", "The kind of fault that hides the gradient, such as rounding or saturation."),
    (
        "near miss",
        "One of the unbroken points whose best candidates came closest to breaking them; it is attacked once more "
        "from there.",
    ),
    ("pass", "One evaluation of the model at one point, forward or backward."),
    ("point", "One labelled input of the data that was drawn for the audit."),
    (
        "points compared",
        "The correctly classified points on which a level rests: at gradient level those that challengers searched "
        "wherever they could reveal something, at loss level those with matched budgets. A level that is decided "
        "needs no further points, so each level has its own number of them.",
    ),
    (
        "power check",
        "Evidence that the search could have found something: known answers that it has to find on its own.",
    ),
    ("probe", "A measurement of the model or its gradients."),
    ("query", "One evaluation of the model at one point that an attack asks for."),
    ("reference", "PGD on cross-entropy with 40 steps from a random start, what a claim is commonly computed with."),
    ("repair", "A change of the backward pass only: every decision stays, and an attack gets another gradient."),
    (
        "repaired attack",
        "A gradient attack through a copy whose backward pass was repaired; its examples are scored on the original.",
    ),
    ("restart", "A further run of an attack from another start."),
    (
        "robust accuracy",
        "The share of all drawn points that the model classifies correctly and that withstand the attack.",
    ),
    (
        "screen",
        "Signs that the gradient or the loss is at fault: three measurements of the gradient, and logits that an "
        "operation brings close together. Where one fires, fewer hidden points count as proof at the level that it "
        "concerns.",
    ),
    (
        "skipped",
        "Of an attack: left out, since nothing that it could find would change the verdict, or for the reason that "
        "is given.",
    ),
    ("slack", "The share of hidden points that healthy models may show; masking must exceed it beyond doubt."),
    ("straight-through", "A backward pass that treats a hard operation, such as rounding, as the identity."),
    (
        "surrogate",
        "Another network, trained on the model's answers, whose gradients are borrowed for a transfer attack.",
    ),
    ("trace", "A record of every operation of the model, of the gradient through it, and of where it is cut."),
    ("unbroken", "No attack has broken the point so far."),
    ("verdict", "masked, suspect, clear or inconclusive: a statement about the search that was made."),
    ("white-box attack", "An attack that follows the model's gradients."),
)


def backticks(text: str) -> int:
    """Length of the longest run of backticks in a text."""
    return max(map(len, re.findall("`+", text)), default=0)
