"""Fresh re-scoring of adversarial examples by code that made none of them.

An example proves a point when it is finite, inside the ball and the bounds, and
the model's answer to it is neither the true class nor a refusal. The model is
asked anew, in two different batches, and both answers must agree: an example
that flips with the batch it travels in proves nothing. For a random model the
majority over fresh draws decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskaudit.target.scores import breaking_margin
from maskaudit.threat import ThreatModel

#: Fresh draws whose majority decides for a random model; odd, so that there is one.
MAJORITY_DRAWS = 31

#: Share of draws that an example must win in an audit: a share of ⅔ seen in 31 draws is at most half in truth
#: with a chance below 4 %, and then fails a later majority about as rarely.
AUDIT_QUORUM = 0.65

#: Points of the second, differently cut batch.
SECOND_BATCH = 16


@dataclass(frozen=True)
class Score:
    """Outcome per example, all of shape (N,): admissible, and broken (which implies admissible)."""

    admissible: Tensor
    broken: Tensor


def rescore(
    raw: Callable[[Tensor], Tensor],
    examples: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    random: bool = False,
    reject_class: int | None = None,
    quorum: float = 0.5,
) -> Score:
    """Score `examples` (N, …) made for clean points `x` (N, …) with labels `y` (N,).

    Args:
        raw: one fresh forward pass: inputs (N, …) → what the model returns (N, K), without gradient.
        random: whether to take the majority over `MAJORITY_DRAWS` fresh draws instead of two passes.
        quorum: share of those draws that must be exceeded; an audit asks for `AUDIT_QUORUM`, so that what
            it keeps as evidence still holds when it is verified by a bare majority.

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
        votes = torch.zeros(len(rows), dtype=torch.int64, device=x.device)
        for _ in range(MAJORITY_DRAWS):
            votes += _wrong(raw(candidates), labels, reject_class)
        broken[rows] = votes > quorum * MAJORITY_DRAWS
    else:
        whole = _wrong(raw(candidates), labels, reject_class)
        pieces = torch.cat(
            [
                _wrong(raw(candidates[i : i + SECOND_BATCH]), labels[i : i + SECOND_BATCH], reject_class)
                for i in range(0, len(rows), SECOND_BATCH)
            ]
        )
        broken[rows] = whole & pieces
    return Score(admissible, broken)


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
