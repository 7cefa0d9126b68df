"""Ask the model anew about clean points and examples, to verify an audit.

A model that always answers alike must answer as recorded, point by point. Of a model that answers at random every
statement is a test on fresh draws: an honest record fails the tests on its examples, and that on its clean points,
with a chance of at most `CHANCE` together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import bdtr
from torch import Tensor

from maskaudit.errors import InputError
from maskaudit.target import Target
from maskaudit.target.rescore import clean_correct, rescore
from maskaudit.target.scores import breaking_margin
from maskaudit.threat import ThreatModel
from maskaudit.verdict.limits import MAJORITY_DRAWS
from maskaudit.verdict.statistics import mcnemar

#: Chance that an honest record of a random model fails; half for its examples, half for its clean points.
CHANCE = 0.01

#: Fresh draws of an example that did not win the first majority.
FURTHER_DRAWS = 301


@dataclass(frozen=True)
class Hearing:
    """A model under review: the open target, the ball, whether it answers at random, and its refusal class."""

    target: Target
    threat: ThreatModel
    random: bool = False
    reject_class: int | None = None

    @property
    def manner(self) -> str:
        """How examples of a random model are decided, as the end of a sentence."""
        if not self.random:
            return ""
        return f" in half of fresh draws or more (a test that an honest audit fails with a chance of {CHANCE / 2:.1%})"

    @property
    def draws(self) -> str:
        """How clean points of a random model are decided, as the end of a sentence."""
        if not self.random:
            return ""
        return f", up to chance (McNemar on fresh majorities of {MAJORITY_DRAWS}, level {CHANCE / 2:.1%})"

    def right(self, x: Tensor, y: Tensor, stated: Tensor) -> Tensor:
        """Points (N,) that the model gives their label; where that is not what was stated it is asked alone as well.

        Raises:
            InputError: when the model lacks the output that means a refusal.
        """
        if not len(x):
            return torch.ones(0, dtype=torch.bool)
        classes = self.target.raw(x[:1]).shape[1]
        if self.reject_class is not None and self.reject_class >= classes:
            raise InputError(
                f"The evidence says that output {self.reject_class} means a refusal, but the model has {classes} "
                "outputs: give the model that was audited."
            )
        found = clean_correct(self.target.raw, x, y, random=self.random, reject_class=self.reject_class)
        if not self.random:
            for row in (found != stated).nonzero().squeeze(1).tolist():
                alone = slice(row, row + 1)
                found[alone] = clean_correct(self.target.raw, x[alone], y[alone], reject_class=self.reject_class)
        return found & (y >= 0) & (y < classes)

    def known(self, x: Tensor, y: Tensor, right: Tensor) -> Tensor:
        """Points (N,) of which an example proves something: a wrong label would make any input one.

        A random model may waver on a clean point; there only labels that it has no class for are refused.
        """
        if not self.random or not len(x):
            return right
        return (y >= 0) & (y < self.target.raw(x[:1]).shape[1])

    def agree(self, stated: Tensor, found: Tensor) -> Tensor:
        """Points (N,) answered as stated; for a random model all, unless too many that were right are wrong now.

        Record and review take a majority each, which fall alike in an honest one: McNemar's test compares the
        points that turned wrong with those that turned right.
        """
        same = stated == found
        if not self.random:
            return same
        worse, better = int((stated & ~found).sum()), int((~stated & found).sum())
        honest = min(mcnemar(worse, better), mcnemar(better, worse)) > CHANCE / 4
        return torch.ones_like(same) if honest else same

    def broken(self, examples: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Examples (N, …) that break their points, bool (N,), and by which margin (N,); None for a random model."""
        score = rescore(
            self.target.raw, examples, x, y, threat=self.threat, random=self.random, reject_class=self.reject_class
        )
        broken = score.broken.clone()
        doubtful = (score.admissible & ~broken).nonzero().squeeze(1)
        if self.random:
            broken[doubtful] = self._often_enough(examples[doubtful], y[doubtful], len(examples))
            return broken, None
        for row in doubtful.tolist():
            broken[row] = bool(self._wrong(examples[row : row + 1], y[row : row + 1]))
        margin = torch.full((len(examples),), torch.inf)
        rows = broken.nonzero().squeeze(1)
        if len(rows):
            margin[rows] = breaking_margin(self.target.raw(examples[rows]), y[rows], self.reject_class)
        return broken, margin

    def _often_enough(self, examples: Tensor, y: Tensor, tests: int) -> Tensor:
        """Examples (n,) whose wins in further draws do not contradict that they win half of them (Bonferroni)."""
        wins = torch.zeros(len(examples), dtype=torch.int64)
        if not len(examples):
            return wins.bool()
        for _ in range(FURTHER_DRAWS):
            wins += self._wrong(examples, y)
        return torch.tensor([float(bdtr(won, FURTHER_DRAWS, 0.5)) > CHANCE / 2 / tests for won in wins.tolist()])

    def _wrong(self, examples: Tensor, y: Tensor) -> Tensor:
        return breaking_margin(self.target.raw(examples.clamp(*self.threat.bounds)), y, self.reject_class) > 0
