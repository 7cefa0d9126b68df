"""What a model's answers are, recognised by their values on clean inputs: unit, rounding, and the evidence for it.

The usual units of one and the same classifier (logits, log-probabilities, probabilities, percentages, bytes,
half precision, rounded figures, votes) must lead to the same verdict, so the unit is found before any loss is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from maskaudit.target.form import TINY, Form

#: Rows whose exponentials sum to 1 within this, and ends of a range that are the same within this share of it, are so.
PROBABILITY_TOLERANCE = 1e-3
#: Non-negative rows that sum to a constant within this share of it are shares of a whole: the spacing of bfloat16.
SUM_TOLERANCE = 2.0**-7
#: Rounding may move the sum of a row by at most this share of it; more would be no evidence.
MOST_ROUNDING = 0.2
#: Decimals to which figures are rounded, coarse to fine, and how far float32 may leave such a grid, in steps of it.
DECIMALS = range(6)
GRID = 1e-3
#: Most voters whose shares are recognised; more points than this share of the rows tell a lower end of the range.
MAX_VOTERS = 1000
LOW_END = 0.9
#: Fewer rows than this are too few to tell sigmoids, votes or shares of an unusual whole from logits by chance.
SIGMOID_ROWS = 16
#: Answers beyond this are no shares, and their sums no numbers to compare.
LARGEST = 1e30
#: Sums of probabilities that are meant when a sum comes near: ones, percent, per mille, bytes.
USUAL_SUMS = (1.0, 100.0, 1000.0, 255.0, 256.0)


#: Difference of logits (nats) beyond which exp(−gap) is 0 in float32.
UNDERFLOW_GAP = 149 * math.log(2)
#: Exact ties at the extreme value on at least this share of points: no unclipped float does that.
CLIP_SHARE = 0.05
#: Answers that are taken as they are.
PLAIN = Form()

OutputKind = Literal[
    "constant", "one-hot", "probabilities", "rounded probabilities", "log-probabilities", "clipped logits",
    "scaled logits", "logits"
]  # fmt: skip


@dataclass(frozen=True)
class AnswerKind:
    """What answers are: how to read them, and the evidence as the end of a sentence."""

    form: Form
    evidence: str


def recognise_outputs(raw: Tensor) -> AnswerKind:
    """Tell what answers (N, K) to clean inputs are; a single column is a binary classifier's."""
    values = raw.detach().double().cpu()
    if not bool(values.isfinite().all()) or float(values.abs().max()) > LARGEST:
        return AnswerKind(Form(), "no finite numbers of a usual size")
    if values.shape[1] == 1:
        return _single(values)
    step, precision = _rounding(values), _precision(values)
    return (
        _shares(values, step, precision, 0.0)
        or _log_probabilities(values)
        or _sigmoids(values)
        or _raised_shares(values, step, precision)
        or AnswerKind(Form(), "rows of any sum")
    )


def output_kind(raw: Tensor, form: Form = PLAIN) -> OutputKind:
    """Name what outputs (N, K) look like, and whether a loss can use them; their unit, in `form`, does not count."""
    raw = form.normal(raw)
    if len(raw) > 1 and bool((raw == raw[0]).all()):
        return "constant"
    if bool((((raw == 0) | (raw == 1)).all(dim=1) & (raw.sum(dim=1) == 1)).all()):
        return "one-hot"
    if form.coarse:
        return "rounded probabilities"
    if bool((raw >= 0).all()) and bool(((raw.sum(dim=1) - 1).abs() <= PROBABILITY_TOLERANCE).all()):
        return "probabilities"
    if _are_logarithms(raw.double()):
        return "log-probabilities"
    low, high = clipped_rows(raw)
    if max(float(low.double().mean()), float(high.double().mean())) >= CLIP_SHARE:
        return "clipped logits"
    gaps = top_gap(raw)
    return "scaled logits" if float(gaps.quantile(0.5)) > UNDERFLOW_GAP else "logits"


def top_gap(scores: Tensor) -> Tensor:
    """Largest less second largest entry per point (N,), float64."""
    top = scores.double().topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def clipped_rows(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N,) that hold the overall smallest, and the overall largest, value, where several rows do.

    Outputs that are the same for all points (a class fixed at 0) are not looked at.
    """
    varying = (raw != raw[0]).any(dim=0)
    if not bool(varying.any()):
        nothing = torch.zeros(len(raw), dtype=torch.bool, device=raw.device)
        return nothing, nothing
    values = raw[:, varying]
    low, high = (values == values.min()).any(dim=1), (values == values.max()).any(dim=1)
    return low & (low.sum() > 1), high & (high.sum() > 1)


def _shares(values: Tensor, step: float, precision: float, offset: float) -> AnswerKind | None:
    """Non-negative rows of one sum, up to rounding; the sum is the unit."""
    held = values - offset
    sums = held.sum(dim=1)
    middle = float(sums.median())
    if bool((held < 0).any()) or middle <= 0:
        return None
    few = len(values) < SIGMOID_ROWS or bool((values == values[0]).all())
    whole = next((usual for usual in USUAL_SUMS if abs(middle - usual) <= SUM_TOLERANCE * usual), middle)
    whole = next((u for u in USUAL_SUMS if abs(middle - u) <= _slack(held, step, u)), whole)
    if float((sums - whole).abs().max()) > _slack(held, step, whole) or (few and whole not in USUAL_SUMS):
        return None
    if not few and (voters := _voters(held, whole)):
        form = Form("votes", whole, offset, smallest=1 / (2 * voters))
        return AnswerKind(form, f"rows of shares of {voters} votes")
    lost = precision * abs(offset) if offset else _least_logarithm(precision)
    smallest = max(TINY, step / whole / 2 if step < whole else 0.0, lost / whole)
    evidence = f"non-negative rows that sum to {whole:g}"
    if step and step < whole:
        evidence += f", in steps of {step:g}"
    elif step == whole:
        evidence = "hard labels: a 1 at one class, 0 at the others"
    elif precision > torch.finfo(torch.float32).eps:
        evidence += f", of {'bfloat16' if precision > 2e-3 else 'half'} precision"
    if offset:
        evidence = f"rows from {offset:g} that sum to a constant"
    return AnswerKind(Form("probabilities", whole, offset, smallest), evidence)


def _raised_shares(values: Tensor, step: float, precision: float) -> AnswerKind | None:
    """Shares that do not begin at 0, such as 2p − 1: rows of one sum whose smallest entries are nearly all the same."""
    sums, low = values.sum(dim=1), float(values.min())
    span = float(values.max()) - low
    if values.shape[1] < 3 or float((sums - sums.median()).abs().max()) > PROBABILITY_TOLERANCE * span:
        return None
    if float((values.amin(dim=1) - low <= PROBABILITY_TOLERANCE * span).double().mean()) < LOW_END:
        return None
    near = round(low)
    return _shares(values, step, precision, float(near) if abs(low - near) <= PROBABILITY_TOLERANCE * span else low)


def _slack(held: Tensor, step: float, whole: float) -> float:
    """How far rounding may move the sum of a row from `whole`."""
    rounded = held.shape[1] * step / 2 if step < whole else 0.0
    return max(SUM_TOLERANCE, min(MOST_ROUNDING, rounded / whole)) * whole


def _voters(held: Tensor, whole: float) -> int:
    """The number of votes of which every entry is a whole number, the rows summing exactly; 0 if there is none.

    One vote is a hard label, which is no share; a power of ten is rounding to decimals as likely, and read alike.
    """
    if float((held.sum(dim=1) - whole).abs().max()) > 1e-5 * whole:
        return 0
    voters = 1
    for value in (held / whole).unique().tolist()[: MAX_VOTERS + 2]:
        voters = _common(voters, Fraction(value).limit_denominator(MAX_VOTERS).denominator)
        if voters > MAX_VOTERS:
            return 0
    counts = held / whole * voters
    return voters if str(voters).strip("10") and float((counts - counts.round()).abs().max()) <= GRID else 0


def _common(a: int, b: int) -> int:
    return int(torch.lcm(torch.tensor(a), torch.tensor(b)))


def _log_probabilities(values: Tensor) -> AnswerKind | None:
    return (
        AnswerKind(Form("log-probabilities"), "rows whose exponentials sum to 1") if _are_logarithms(values) else None
    )


def _are_logarithms(values: Tensor) -> bool:
    return bool((values <= 0).all() and ((values.exp().sum(dim=1) - 1).abs() <= PROBABILITY_TOLERANCE).all())


def _sigmoids(values: Tensor) -> AnswerKind | None:
    """Entries between 0 and 1 whose rows have different sums; not where most lie exactly at an end (a clip)."""
    if len(values) < SIGMOID_ROWS or bool(((values < 0) | (values > 1)).any()):
        return None
    if float(values.max()) <= 0.5 or bool((values == values[0]).all()):
        return None
    if float((values == 0).double().mean()) > 0.2 and float((values == 1).double().mean()) > 0.02:
        return None
    return AnswerKind(Form("sigmoids"), "entries between 0 and 1 whose rows do not have one sum")


def _single(values: Tensor) -> AnswerKind:
    """A single output: a probability of class 1 between 0 and 1 (or 100, 255), else a logit."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high > low:
        whole = next((usual for usual in (1.0, 100.0, 255.0) if usual / 2 < high <= usual), None)
        if whole is not None and low < whole / 2:
            form = Form("one-probability", whole, threshold=whole / 2)
            return AnswerKind(form, f"single answers between 0 and {whole:g}")
    return AnswerKind(Form("one-logit"), "single answers beyond 0 and 1")


def _rounding(values: Tensor) -> float:
    """The coarsest decimal step of which all values are multiples; 0 where there is none."""
    for decimals in DECIMALS:
        step = 10.0**-decimals
        counts = values / step
        exact = (counts - counts.round()).abs() <= GRID
        if bool((exact & ((counts.round() != 0) | (values == 0))).all()):
            return step
    return 0.0


def _precision(values: Tensor) -> float:
    """Relative rounding of the coarsest floating type in which all values are exact."""
    single = values.float()
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(single.to(dtype).float(), single):
            return float(torch.finfo(dtype).eps)
    return float(torch.finfo(torch.float32).eps)


def _least_logarithm(precision: float) -> float:
    """The smallest number whose logarithm has a gradient that does not overflow in the type with that rounding."""
    half = torch.finfo(torch.float16)
    return float(2 / half.max) if precision == float(half.eps) else 0.0
