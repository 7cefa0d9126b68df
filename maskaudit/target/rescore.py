"""Fresh re-scoring of adversarial examples by code that made none of them.

An example proves a point when it is finite, inside the ball and the bounds, and
the model's answer to it is neither the true class nor a refusal. The model is
asked again, in company and alone, and both answers must agree: an example
that flips with the batch it travels in proves nothing. For a random model a test on
fresh draws decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.target.scores import breaking_margin
from maskaudit.threat import ThreatModel
from maskaudit.verdict.limits import MAJORITY_DRAWS, PROOF_DRAWS, PROOF_ERROR
from maskaudit.verdict.statistics import binomial_tail


@dataclass(frozen=True)
class Proof:
    """A test on fresh draws of a random model that an example wins more than half of all draws.

    Attributes:
        draws: fresh draws, none of which an attack or an earlier test has seen.
        error: chance at most of an example that wins half of all draws, or fewer, to pass (exact binomial).
    """

    draws: int
    error: float

    @property
    def wins(self) -> int:
        """The fewest wins among the draws that pass."""
        return next(wins for wins in range(self.draws + 2) if binomial_tail(wins, self.draws, 0.5) <= self.error)

    @property
    def sentence(self) -> str:
        """For the report: when an example counts as proven."""
        return (
            f"The model answers at random: an example counts where it wins {self.wins} of {self.draws} fresh draws, "
            f"which one that wins half of all draws or fewer does with a chance of at most {self.error:.1%}."
        )

    def to_dict(self) -> dict[str, float]:
        """Plain values for the report."""
        return {"draws": self.draws, "wins": self.wins, "error": self.error}


#: What an audit demands of an example of a random model.
PROOF = Proof(PROOF_DRAWS, PROOF_ERROR)


@dataclass(frozen=True)
class Score:
    """Outcome per example, all of shape (N,): admissible, and broken (which implies admissible).

    `won` counts the draws of the proof that an example of a random model won; None where there was none.
    """

    admissible: Tensor
    broken: Tensor
    won: Tensor | None = None


def rescore(
    raw: Callable[[Tensor], Tensor], examples: Tensor, x: Tensor, y: Tensor, *, threat: ThreatModel,
    random: bool = False, reject_class: int | None = None, proof: Proof | None = None,
) -> Score:  # fmt: skip
    """Score `examples` (N, …) made for clean points `x` (N, …) with labels `y` (N,).

    Args:
        raw: one fresh forward pass: inputs (N, …) → what the model returns (N, K), without gradient.
        random: whether to take the majority over `MAJORITY_DRAWS` fresh draws instead of two passes.
        proof: what those that win the majority have to pass besides, on draws of its own.

    Returns:
        `Score`; inadmissible examples are never shown to the model.
    """
    admissible = threat.admissible(examples, x)
    broken = torch.zeros_like(admissible)
    rows = admissible.nonzero().squeeze(1)
    if not len(rows):
        return Score(admissible, broken)
    candidates = examples[rows].clamp(*threat.bounds)
    labels = y[rows]
    if random:
        broken[rows] = _votes(raw, candidates, labels, reject_class, MAJORITY_DRAWS) * 2 > MAJORITY_DRAWS
        return (
            Score(admissible, broken)
            if proof is None
            else _proven(raw, examples, y, threat, reject_class, proof, admissible, broken)
        )
    wrong = _wrong(raw(candidates), labels, reject_class)
    for row in wrong.nonzero().squeeze(1).tolist():
        wrong[row] = _wrong(raw(candidates[row : row + 1]), labels[row : row + 1], reject_class)[0]
    broken[rows] = wrong
    return Score(admissible, broken)


def _proven(
    raw: Callable[[Tensor], Tensor], examples: Tensor, y: Tensor, threat: ThreatModel, reject_class: int | None,
    proof: Proof, admissible: Tensor, likely: Tensor,
) -> Score:  # fmt: skip
    """Those of the likely ones that pass the proof."""
    won = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    rows = likely.nonzero().squeeze(1)
    if len(rows):
        won[rows] = _votes(raw, examples[rows].clamp(*threat.bounds), y[rows], reject_class, proof.draws)
    return Score(admissible, likely & (won >= proof.wins), won)


def _votes(
    raw: Callable[[Tensor], Tensor], candidates: Tensor, y: Tensor, reject_class: int | None, draws: int
) -> Tensor:
    """How many of so many fresh draws each candidate wins, int64 (N,)."""
    votes = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    for _ in range(draws):
        votes += _wrong(raw(candidates), y, reject_class)
    return votes


def clean_correct(
    raw: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, random: bool = False, reject_class: int | None = None
) -> Tensor:
    """True per point (N,) where the model answers the true class on the clean input (majority for a random model)."""
    draws = MAJORITY_DRAWS if random else 1
    votes = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for _ in range(draws):
        votes += (raw(x).argmax(dim=1) == y).long()
    return votes * 2 > draws


def _wrong(scores: Tensor, y: Tensor, reject_class: int | None) -> Tensor:
    """Strictly another class wins: a tie between the true class and another one proves nothing."""
    return breaking_margin(scores, y, reject_class) > 0
