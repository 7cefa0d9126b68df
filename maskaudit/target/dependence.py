"""What a model's answers depend on besides the input: its company, earlier calls, chance.

A few points are asked together, twice, in another order, and alone. What changes between two equal calls is
classed by what makes it come back: the same seed of the global generators (chance), or the model put back as it was
(state). Generators of the model's own are chance as well. Differences within rounding are none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskaudit.errors import InputError, ModelError
from maskaudit.target.model import Target
from maskaudit.target.preserve import seed_generators

#: Points that are asked alone as well.
ALONE_POINTS = 16
#: Share of the spread of the scores within which answers to one point are the same: other batch sizes round otherwise.
SAME = 1e-3
#: The same, in units of the spacing of the model's own floating type where that is coarser.
ROUNDINGS = 8
#: Points, as a share, that must be answered otherwise beside other points; rounding may move single ones.
DEPENDENT_SHARE = 0.1
#: Draws of a random model whose means are compared, and standard errors by which they must differ.
MEAN_DRAWS, MEAN_ERRORS = 24, 5.0
#: Seeds of the global generators; any two.
SEEDS = (11, 12)


@dataclass(frozen=True)
class Dependence:
    """What answers depend on.

    Attributes:
        company: on the other points of the batch; order: on the place in the batch.
        state: on earlier calls.
        random: on chance.
        change: largest change of a score through company or order, as a share of the spread of the scores.
    """

    company: bool = False
    order: bool = False
    state: bool = False
    random: bool = False
    change: float = 0.0

    @property
    def batch(self) -> bool:
        """Whether points must be asked alone."""
        return self.company or self.order

    def sentences(self) -> list[str]:
        """What was found, for report and verdict; nothing where answers depend on the input alone."""
        notes = []
        if self.batch:
            on = "the other points of its batch" if self.company else "its place in the batch"
            notes.append(
                f"The answer to a point depends on {on} (scores change by up to {self.change:.1%} of their spread): "
                "every point is asked alone, and an example counts only as it is answered alone."
            )
        if self.state:
            notes.append(
                "The model's answers change from call to call with a state that it keeps: before every call it is put "
                "back as it was at the start, and this is what is audited."
            )
        return notes

    def to_dict(self) -> dict[str, bool]:
        """Plain values for the report."""
        return {"batch": self.batch, "state": self.state, "random": self.random}


def measure_dependence(target: Target, x: Tensor) -> Dependence:
    """Ask about points (N, …) in several ways; `target.form` is left so that what was found is respected.

    The state that the target remembers is the one that counts as the model's own.

    Raises:
        ModelError: when the model fails.
        InputError: when a point has no answer of its own.
    """
    first = target.raw(x)
    tolerance = _tolerance(target.model, first)
    state = chance = False
    if not _same(first, target.raw(x), tolerance):
        state, chance = _why_it_changes(target, x, tolerance)
        target.form = target.form.changed(fresh=state)
    if not state:
        target.forget()
    asked = x[:ALONE_POINTS]
    if chance:
        company, order = _means_differ(target, x, tolerance), False
        change = 0.0
    else:
        together, back = target.raw(x), target.raw(x.flip(0)).flip(0)
        alone = together[:ALONE_POINTS] if len(x) == 1 else _alone(target, asked)
        company = _differs(together[: len(alone)], alone, tolerance)
        order = _differs(together, back, tolerance)
        change = float(torch.cat([together[: len(alone)] - alone, together - back]).abs().max()) / _spread(together)
    found = Dependence(company, order, state, chance, change)
    target.form = target.form.changed(alone=found.batch)
    return found


def _why_it_changes(target: Target, x: Tensor, tolerance: float) -> tuple[bool, bool]:
    """Whether state, and whether chance, makes two equal calls answer differently."""

    def pair(first: int, second: int, *, put_back: bool) -> bool:
        answers = []
        for seed in (first, second):
            if put_back:
                target.put_back()
            seed_generators(seed)
            answers.append(target.raw(x))
        return _same(answers[0], answers[1], tolerance)

    one, other = SEEDS
    if pair(one, one, put_back=False):
        return False, True
    if not pair(one, one, put_back=True):  # a generator of its own, or something out of reach
        return False, True
    return True, not pair(one, other, put_back=True)


def _alone(target: Target, x: Tensor) -> Tensor:
    """Answers to points that are asked one by one; where the model takes no single point, each in its own company."""
    if target.form.least == 1:
        try:
            return torch.cat([target.raw(x[row : row + 1]) for row in range(len(x))])
        except ModelError as error:
            target.form, failure = target.form.changed(least=2), error
    alone = torch.cat([target.raw(x[row : row + 1]) for row in range(len(x))])
    if _differs(target.raw(x), alone, _tolerance(target.model, alone)):
        raise InputError(
            f"The model fails on a single point, and its answer to one depends on the others of its batch, so that no "
            f"point has an answer of its own; give batch normalisation its running statistics. ({failure})"
        ) from failure
    return alone


def _means_differ(target: Target, x: Tensor, tolerance: float) -> bool:
    """Whether a random model answers otherwise on average in company than alone."""
    asked = x[:ALONE_POINTS]
    together = torch.stack([target.raw(x)[: len(asked)] for _ in range(MEAN_DRAWS)]).double()
    alone = torch.stack([_alone(target, asked) for _ in range(MEAN_DRAWS)]).double()
    error = ((together.var(dim=0) + alone.var(dim=0)) / MEAN_DRAWS).sqrt()
    beyond = (together.mean(dim=0) - alone.mean(dim=0)).abs() > MEAN_ERRORS * error + tolerance
    return float(beyond.any(dim=1).double().mean()) > DEPENDENT_SHARE


def _differs(first: Tensor, second: Tensor, tolerance: float) -> bool:
    changed = ((first - second).abs() > tolerance).any(dim=1)
    return float(changed.double().mean()) > DEPENDENT_SHARE


def _same(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Whether two equal calls answered alike; only an accelerator may round two of them differently."""
    if first.device.type == "cpu":
        return torch.equal(first, second)
    return float((first - second).abs().max()) <= tolerance


def _spread(scores: Tensor) -> float:
    return max(float(scores.amax() - scores.amin()), torch.finfo(torch.float32).tiny)


def _tolerance(model: nn.Module | Callable[[Tensor], Tensor], scores: Tensor) -> float:
    """Within what answers to one point are the same."""
    kept = {p.dtype for p in model.parameters() if p.is_floating_point()} if isinstance(model, nn.Module) else set()
    coarsest = max((torch.finfo(dtype).eps for dtype in kept), default=0.0)
    return max(SAME, ROUNDINGS * coarsest) * _spread(scores)
