"""Several attempts at the same points, each on what those before it left standing."""

from __future__ import annotations

import torch
from torch import Tensor

from maskaudit.attacks.interface import Attempt, BestCandidates
from maskaudit.target import Target


class Relay:
    """What a row of attempts on points `x` (N, …) with labels `y` (N,) has reached, by the margin of `target`.

    Attributes:
        best: the best candidate per point so far.
        standing: the points that the next attempt is made on, int64 (n,); all of them where nothing stops early.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor) -> None:
        self._target, self._y = target, y
        self._queries = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._first = torch.full_like(self._queries, -1)
        self.best = BestCandidates(x)
        self.standing = torch.arange(len(x), device=x.device)

    def book(self, attempt: Attempt) -> None:
        """Add an attempt on the standing points, whatever it was made on, scored by the target itself."""
        target, standing = self._target, self.standing
        reached = target.margin(target.scores(attempt.examples), self._y[standing])
        self.best.offer(standing, attempt.examples, reached)
        hit = (attempt.first_success >= 0) & (reached > 0) & (self._first[standing] < 0)
        self._first[standing[hit]] = self._queries[standing[hit]] + attempt.first_success[hit]
        self._queries[standing] += attempt.queries
        if target.stop_early:
            self.standing = standing[~(reached > 0)]

    def finish(self) -> Attempt:
        """All attempts as one."""
        return Attempt(self.best.examples, self._first, self._queries)
