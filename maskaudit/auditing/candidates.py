"""The best candidates that attacks brought for points that nothing broke: where further attacks start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskaudit.auditing.ledger import Ledger
from maskaudit.target import Target
from maskaudit.target.rescore import Score


class Candidates:
    """Examples with their margins, by row of a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._best: dict[int, tuple[float, Tensor]] = {}

    def of(self, rows: Tensor) -> Tensor:
        """The example with the largest margin that any attack found for each of `rows`; the clean point if none did."""
        return torch.stack([self._best[r][1] if r in self._best else self.ledger.x[r] for r in rows.tolist()])

    def nearest(self, rows: Tensor, share: float, least: int) -> Tensor:
        """Those of `rows` whose candidates have the largest margins: a share of them, at `least` so many."""
        margins = torch.tensor([self._best[r][0] if r in self._best else -math.inf for r in rows.tolist()])
        most = max(least, math.ceil(share * len(rows)))
        return rows[margins.argsort(descending=True, stable=True)[:most].sort().values]

    def keep(self, target: Target, rows: Tensor, examples: Tensor, score: Score) -> None:
        """Keep the best candidates for points that nothing has broken."""
        useful = (score.admissible & ~self.ledger.best_known()[rows]).nonzero().squeeze(1)
        rows, examples = rows[useful], examples[useful]
        if not len(rows):
            return
        margins = target.margin(target.scores(examples), self.ledger.y[rows]).tolist()
        for row, margin, example in zip(rows.tolist(), margins, examples, strict=True):
            held = self._best.get(row)
            if held is None or margin > held[0]:
                self._best[row] = (margin, example.clone())
