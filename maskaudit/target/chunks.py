"""Points in portions: what is worked out per point need not lie in memory for all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.target.scores import columns

#: Numbers of the largest tensor that is made at once: 64 MB in float32.
MOST_ELEMENTS = 2**24


def chunks(points: int, elements: int) -> Iterator[slice]:
    """Slices of `points` rows in order; where a row takes `elements` numbers, none takes above `MOST_ELEMENTS`.

    A row that takes more by itself is a slice of its own.
    """
    size = max(1, MOST_ELEMENTS // max(1, elements))
    for start in range(0, points, size):
        yield slice(start, min(start + size, points))


def in_batches(model: Callable[[Tensor], Any], x: Tensor, size: int, output_key: str = "") -> Tensor:
    """Answers (N, K) of a model that takes batches of exactly `size` points to any number (N, …) of them.

    The last batch is filled up with its last point; the answers to these copies are dropped.
    """
    spare = -len(x) % size
    filled = torch.cat([x, x[-1:].expand(spare, *x.shape[1:])]) if spare else x
    return torch.cat([columns(model(part), size, output_key) for part in filled.split(size)])[: len(x)]


class FixedBatch(nn.Module):
    """A model that takes batches of exactly `size` points, made to take any number; a `Target` takes it apart."""

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module, self.size = module, size

    def forward(self, x: Tensor) -> Any:
        """Scores (N, K) for inputs (N, …); of exactly `size` points whatever the model returns."""
        return self.module(x) if len(x) == self.size else in_batches(self.module, x, self.size)
