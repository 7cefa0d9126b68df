"""Why a model is often wrong on clean points: causes that people's data and options have, found by trying each.

Every cause has one repair: an option, or other labels. A few points are asked as the model would want them if the
cause were real; what lifts accuracy by more than luck is the cause, and is named with its repair.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from maskaudit.errors import ModelError
from maskaudit.settings import AuditSettings
from maskaudit.target.form import LAYOUTS
from maskaudit.target.kinds import top_gap
from maskaudit.target.model import Target
from maskaudit.verdict.limits import (
    CAUSE_GAIN,
    CAUSE_SHARE,
    CLEAN_DOUBT,
    HOPELESS,
    LOG_RATIO,
    MIN_POINTS,
    SATURATED_OUTPUT_SHARE,
)
from maskaudit.verdict.statistics import binomial_tail

#: Points that are tried at most.
TRIED_POINTS = 128
#: Width of the range of inputs from which on they are no customary unit but pixels of 0 … 255.
WIDE = 16.0
#: Labels that are listed with what they should be.
LISTED = 6
#: Customary normalisations by number of channels: name, mean, deviation.
CUSTOMARY: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
    ("of ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("of CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    ("of CIFAR-10 as often copied", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ("of CIFAR-100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ("of SVHN", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    ("of MNIST", (0.1307,), (0.3081,)),
    ("of Fashion-MNIST", (0.2860,), (0.3530,)),
    ("to −1 … 1", (0.5,), (0.5,)),
)


@dataclass(frozen=True)
class Remedy:
    """A cause, the option that repairs it, and accuracy with it.

    Attributes:
        cause: what is wrong, as a sentence without its full stop.
        option: what repairs it: options, or how labels have to be numbered.
        accuracy: share of the tried points that are answered rightly with it.
    """

    cause: str
    option: str
    accuracy: float


@dataclass(frozen=True)
class Diagnosis:
    """Clean accuracy on the tried points, whether it is no better than chance, and the likeliest remedy.

    Attributes:
        right, tried: points answered rightly, of so many.
        chance: what guessing among the classes of the data would answer rightly.
        only: the class that every point is answered as; None where there are several.
        inputs: whether the inputs were shown otherwise, too, to find a remedy.
        unit: what is to be said of the range of the inputs where the accuracy is fine; "" for nothing.
    """

    right: int
    tried: int
    chance: float
    only: int | None = None
    inputs: bool = False
    remedy: Remedy | None = None
    unit: str = ""

    @property
    def hopeless(self) -> bool:
        """Whether the accuracy is at or below chance, as far as such a number of points can tell."""
        return self.tried >= MIN_POINTS and binomial_tail(self.right, self.tried, self.chance) > HOPELESS

    @property
    def sentence(self) -> str:
        """What was found, for terminal and report; "" where there is nothing to say."""
        seen = f"Only {self.right} of {self.tried} clean points are classified correctly"
        if self.remedy is not None:
            return f"{seen}. {self.remedy.cause}: with {self.remedy.option} it is {self.remedy.accuracy:.0%} of them."
        if self.hopeless:
            alike = "" if self.only is None else f" (every one is answered as class {self.only})"
            tried = "numbering of labels"
            tried = f"normalisation, range, order of channels or {tried}" if self.inputs else tried
            return (
                f"{seen}{alike}, no better than chance ({self.chance:.0%}), and no other {tried} that was tried helps: "
                "give the data, labels and weights that belong together."
            )
        return self.unit


def diagnose(target: Target, x: Tensor, y: Tensor, settings: AuditSettings, *, labels_only: bool = False) -> Diagnosis:
    """Look at clean accuracy on points (N, …) with labels (N,); where it is low, try what could be the cause.

    With `labels_only` nothing is tried that asks the model again.

    Raises:
        ModelError: when the model fails on the points as they are.
    """
    x, y = x[:TRIED_POINTS], y[:TRIED_POINTS]
    answers = target.scores(x)
    predicted = answers.argmax(dim=1)
    right = predicted == y
    only = int(predicted[0]) if len(predicted) and bool((predicted == predicted[0]).all()) else None
    found = Diagnosis(int(right.sum()), len(y), 1 / max(2, len(y.unique())), only, inputs=not labels_only)
    if float(right.double().mean()) >= CLEAN_DOUBT:
        return found if labels_only else dataclasses.replace(found, unit=_unit(target, x, answers, right, settings))
    remedies = [*_other_labels(predicted, y), *([] if labels_only else _other_inputs(target, x, y, settings))]
    best = max(remedies, key=lambda one: one[1].sum(), default=None)
    if best is None or not _better(right, best[1], y):
        return found
    cause, option = best[0]
    return dataclasses.replace(found, remedy=Remedy(cause, option, float(best[1].double().mean())))


def _unit(target: Target, x: Tensor, answers: Tensor, right: Tensor, settings: AuditSettings) -> str:
    """What to say of inputs in 0 … 255 whose scores (N, K) flatten cross-entropy, which they would not in 0 … 1."""
    low, high = target.bounds
    if high - low <= WIDE or (settings.mean, settings.std) != (None, None):
        return ""
    _, option, mean, std = _in_unit_range(low, high - low)
    before = target.mean, target.std
    try:
        target.mean, target.std = mean, std
        inside = target.scores(x)
    except ModelError:
        return ""
    finally:
        target.mean, target.std = before
    agree = float((inside.argmax(dim=1) == answers.argmax(dim=1))[right].double().mean())
    flat, within = _flat(answers), _flat(inside)
    if agree < CLEAN_DOUBT or flat <= SATURATED_OUTPUT_SHARE or within > flat / 2:
        return ""
    return (
        f"On inputs in {low:g} … {high:g} the scores lie so far apart that cross-entropy has no usable gradient on "
        f"{flat:.0%} of the points; in 0 … 1 the model classifies alike, and it is {within:.0%}. If "
        f"it was trained on inputs in 0 … 1, give {option}: else what is audited is the wrong range, not the model."
    )


def _flat(scores: Tensor) -> float:
    """Share of points whose best score (N, K) is so far above the next that float32 cross-entropy loses the others."""
    return float((top_gap(scores) > -LOG_RATIO * math.log(10)).double().mean())


def _better(before: Tensor, after: Tensor, y: Tensor) -> bool:
    """Whether more points are right than luck explains (exact McNemar), and enough of them to matter.

    More than a constant answer gets right, too: some numbering always makes that the commonest label.
    """
    constant = float(y.unique(return_counts=True)[1].max()) / len(y)
    if binomial_tail(int(after.sum()), len(y), constant) >= HOPELESS / 10:
        return False
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    enough = gained - lost >= max(CAUSE_GAIN * len(before), CAUSE_SHARE * int((~before).sum()))
    return enough and binomial_tail(gained, gained + lost, 0.5) < HOPELESS / 10


def _other_labels(predicted: Tensor, y: Tensor) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """The labels numbered otherwise."""
    yield ("The labels count from 1, the model's classes from 0", "--first-label 1"), predicted == y - 1
    yield ("The model's first class is none of the data's", "--first-label -1"), predicted == y + 1
    alike = _as_most(predicted, y) & _as_most(y, predicted)
    pairs = set(zip(y[alike].tolist(), predicted[alike].tolist(), strict=True))
    order = [f"{label} as {answer}" for label, answer in sorted(pairs) if label != answer]
    told = ", ".join(order[:LISTED]) + (f" and {len(order) - LISTED} more" if len(order) > LISTED else "")
    cause = "The labels name the classes in another order than the model", f"the data's labels renumbered ({told})"
    yield cause, alike


def _as_most(values: Tensor, groups: Tensor) -> Tensor:
    """Points (N,) whose value is the commonest among the others of their group: no point speaks for itself."""
    shown = F.one_hot(values).float()
    others = (groups[:, None] == groups).float() @ shown - shown
    return (others.argmax(dim=1) == values) & (others.amax(dim=1) > 0)


def _other_inputs(
    target: Target, x: Tensor, y: Tensor, settings: AuditSettings
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """The inputs shown otherwise: range, normalisation, order of the channels, layout; and range with order."""
    before = target.form, target.mean, target.std
    normalised = settings.mean is not None or settings.std is not None
    try:
        for cause, option, mean, std in _normalisations(target, x, normalised=normalised):
            target.mean, target.std = mean, std
            yield from _asked(target, x, y, cause, option)
            if x.dim() == 4 and x.shape[1] == 3:
                target.form = before[0].changed(swap=not before[0].swap)
                yield from _asked(target, x, y, f"{cause}, and its channels are BGR", f"{option} --swap-channels")
                target.form = before[0]
        _, target.mean, target.std = before
        if x.dim() > 2 and x.shape[1] == 3:
            target.form = before[0].changed(swap=not before[0].swap)
            yield from _asked(target, x, y, "The model takes the channels in reverse order (BGR)", "--swap-channels")
        for layout in LAYOUTS if settings.layout == "auto" else ():
            if layout != before[0].layout and LAYOUTS[layout].fits(tuple(x.shape[1:])):
                target.form = before[0].changed(layout=layout)
                cause = f"The model takes its inputs {LAYOUTS[layout].phrase}"
                yield from _asked(target, x, y, cause, f"--layout {layout}")
    finally:
        target.form, target.mean, target.std = before


def _normalisations(
    target: Target, x: Tensor, *, normalised: bool
) -> Iterator[tuple[str, str, tuple[float, ...] | None, tuple[float, ...] | None]]:
    """Cause, option, mean and deviation of what the model may want instead."""
    low, high = target.bounds
    width = high - low
    if normalised:
        yield "The model normalises its inputs itself, so that it is done twice", "no --mean and --std", None, None
    if width <= WIDE:
        yield (
            "The model wants inputs in 0 … 255",
            f"--mean {low:g} --std {width:g}/255" if low else f"--std {width:g}/255",
            (low,) if low else None, (width / 255,),
        )  # fmt: skip
    if (low, high) != (0.0, 1.0):
        yield _in_unit_range(low, width)
    for name, mean, std in CUSTOMARY:
        if len(mean) in (1, x.shape[1]):
            mean, std = tuple(low + width * m for m in mean), tuple(width * s for s in std)
            option = f"--mean {','.join(f'{m:.6g}' for m in mean)} --std {','.join(f'{s:.6g}' for s in std)}"
            yield f"The normalisation {name} seems to be missing", option, mean, std


def _in_unit_range(low: float, width: float) -> tuple[str, str, tuple[float, ...], tuple[float, ...]]:
    """Cause, option, mean and deviation of inputs of such a range shown in 0 … 1."""
    return "The model wants inputs in 0 … 1", f"--mean {low:g} --std {width:g}", (low,), (width,)


def _asked(target: Target, x: Tensor, y: Tensor, cause: str, option: str) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """What the model answers rightly then; nothing where it does not take such inputs."""
    try:
        yield (cause, option), target.scores(x).argmax(dim=1) == y
    except ModelError:
        return
