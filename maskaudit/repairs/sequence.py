"""Several attempts at the same points, each on what those before it left unbroken."""

from __future__ import annotations

import torch
from torch import Tensor

from maskaudit.attacks.confirm import confirmation
from maskaudit.attacks.interface import Attempt, BestCandidates
from maskaudit.target import Target


class Relay:
    """What a row of attempts on points `x` (N, …) with labels `y` (N,) has reached, by the margin of `target`.

    Attributes:
        best: the best candidate per point so far.
        unbroken: the points that the next attempt is made on, int64 (n,): those not broken, of a random model not
            beyond doubt; all of them where there is a reject class.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor) -> None:
        self._target, self._y, self._confirm = target, y, confirmation(target, x, y)
        self._queries = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._first = torch.full_like(self._queries, -1)
        self.best = BestCandidates(x)
        self.unbroken = torch.arange(len(x), device=x.device)

    def book(self, attempt: Attempt) -> None:
        """Add an attempt on the unbroken points, whatever it was made on, scored by the target itself."""
        target, unbroken = self._target, self.unbroken
        reached = target.margin(target.scores(attempt.examples), self._y[unbroken])
        self.best.offer(unbroken, attempt.examples, reached)
        hit = (attempt.first_success >= 0) & (reached > 0) & (self._first[unbroken] < 0)
        self._first[unbroken[hit]] = self._queries[unbroken[hit]] + attempt.first_success[hit]
        self._queries[unbroken] += attempt.queries
        if target.stop_early:
            self.unbroken = unbroken[~(reached > 0)]
        elif self._confirm is not None:
            sure = (self.best.margin[unbroken] > 0).nonzero().squeeze(1)
            if len(sure):
                sure = sure[self._confirm(self.best.examples[unbroken[sure]], unbroken[sure])]
            left = torch.ones_like(unbroken, dtype=torch.bool)
            left[sure] = False
            self.unbroken = unbroken[left]

    def finish(self) -> Attempt:
        """One attempt that holds the best of all."""
        return Attempt(self.best.examples, self._first, self._queries)
