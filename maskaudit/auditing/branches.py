"""Branch-wise masking: what one branch of a network sees, what the network sees without it, and which of both fools it.

Three searches of equal effort run on the same points: through the gradient of the whole network, through that of the
branch alone, and through that of everything but the branch. A branch whose gradient hides the way out is found where
one of the last two breaks points that the first does not.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from maskaudit.attacks.apgd import apgd
from maskaudit.attacks.interface import AttackSpec, Attempt
from maskaudit.attacks.losses import margin
from maskaudit.errors import ModelError
from maskaudit.repairs.branch import View, through_branch
from maskaudit.results import BranchRow
from maskaudit.rng import PointRNG
from maskaudit.target import PassLedger, Target
from maskaudit.target.rescore import Score, rescore
from maskaudit.threat import ThreatModel
from maskaudit.trace.behaviour import vanishes
from maskaudit.verdict.limits import SLACK

SOURCE = "Szegedy et al. 2015, Going deeper with convolutions (networks of branches)"
_TITLES: dict[View, str] = {
    "alone": "Auto-PGD on the margin through the gradient of the branch {} alone",
    "masked": "Auto-PGD on the margin with the gradient of the branch {} masked",
}


def branch_spec(branch: str, view: View, steps: int) -> AttackSpec:
    """The row under which examples found through a branch alone, or with it masked, are booked."""
    name = f"branch-{view}:{branch}"
    return AttackSpec(
        name, _TITLES[view].format(branch), "repaired", "repaired", apgd, {"loss": "margin", "steps": steps}, None,
        (SOURCE,), phase="repaired",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """What one search through a branch brought, its fresh score, and what both cost."""

    spec: AttackSpec
    attempt: Attempt
    score: Score
    spent: PassLedger
    seconds: float


def try_branch(
    target: Target, x: Tensor, y: Tensor, branch: str, *, threat: ThreatModel, rng: PointRNG, steps: int
) -> tuple[BranchRow, tuple[Found, ...]]:
    """Search through a branch alone and without its gradient, and ask the network without the branch.

    Args:
        target: the open target, whose answers are not random.
        x: correctly classified points (N, …); y: labels (N,).
        branch: path of the module that ends the branch.
        threat: ball and bounds; rng: random numbers of the points, the same for all searches.
        steps: gradient steps of each search.

    Raises:
        UsageError: when the branch does not run or does not make a tensor.
    """

    def search(view: View | None) -> Found:
        spec = branch_spec(branch, view or "alone", steps)
        asked = target if view is None else through_branch(target, branch, view)
        before, started = target.ledger.copy(), time.perf_counter()
        attempt = apgd(asked, x, y, threat=threat, rng=rng, **spec.settings)
        score = rescore(target.raw, attempt.examples, x, y, threat=threat, reject_class=target.reject_class)
        return Found(spec, attempt, score, target.ledger.since(before), time.perf_counter() - started)

    alone, masked, whole = search("alone"), search("masked"), search(None).score.broken
    silenced = through_branch(target, branch, "silenced")
    right = _answers(silenced, x) == y
    fooled = right & (_answers(silenced, alone.attempt.examples) != y)
    gradient = through_branch(target, branch, "alone").value_and_grad(
        x, lambda scores, rows: margin(scores, y[rows], target.reject_class)
    )
    counts = {
        "whole": whole, "alone": alone.score.broken, "masked": masked.score.broken,
        "hides": masked.score.broken & ~whole, "hidden": alone.score.broken & ~whole,
        "no_gradient": vanishes(gradient.grad), "without_correct": right, "without_fooled": fooled,
    }  # fmt: skip
    row = BranchRow(branch, len(x), **{name: int(mask.sum()) for name, mask in counts.items()})
    return row, (alone, masked)


def _answers(target: Target, x: Tensor) -> Tensor:
    """Classes (N,) that a network without a branch answers; −1 where it cannot do without."""
    try:
        return target.predict(target.scores(x))
    except ModelError:
        return torch.full((len(x),), -1)


def added(first: BranchRow, second: BranchRow) -> BranchRow:
    """The row of a branch on the points of two rows of it."""
    counts = [f.name for f in dataclasses.fields(BranchRow) if f.name != "branch"]
    return BranchRow(first.branch, **{name: getattr(first, name) + getattr(second, name) for name in counts})


def sentence(row: BranchRow) -> str:
    """What the figures of a branch say."""
    return " ".join(_sentences(row))


def _sentences(row: BranchRow) -> Iterator[str]:
    n = row.points
    yield (
        f"Branch {row.branch}: what it alone sees fools the whole network on {row.alone} of {n} points (the whole "
        f"gradient on {row.whole}, the gradient with this branch masked on {row.masked})."
    )
    if row.no_gradient == n:
        yield "No gradient at all comes through it."
    elif row.no_gradient:
        yield f"No gradient comes through it on {row.no_gradient}."
    yield (
        f"Without the branch {row.without_correct} points are still answered rightly; the same perturbations fool "
        f"that network on {row.without_fooled} of them."
    )
    if row.hides > SLACK * n:
        yield f"On {row.hides} points only the gradient without this branch succeeds: the branch hides the way."
    if row.hidden > SLACK * n:
        yield f"On {row.hidden} points only the branch's gradient succeeds: the rest of the network hides the way."
