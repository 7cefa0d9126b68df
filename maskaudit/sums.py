"""Sums that decide: the same to the bit whatever company a point is in.

The result of a reduction in PyTorch depends on more than the numbers. Rows that do not lie one after the other in
memory are added in another order than rows that do (a batch of one counts as lying so in any layout), and a single
row of 32,768 numbers or more is shared out among the threads. Here every row lies in one piece and is reduced in
chunks too short to be shared out, so that a row's result depends on this row and the processor alone. Where even the
place of a number within its row changes with the company, `exact_total` does not depend on the order at all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Longest row that is reduced in one go: below the 32,768 from which PyTorch shares one row out among threads.
CHUNK = 2**14
#: Bits of a float64 below the bound that `exact_total` keeps; the rest of its 53 holds the carry.
KEPT_BITS = 48


def column(per_point: Tensor, like: Tensor) -> Tensor:
    """One number per point (N,) in a shape that broadcasts over `like` (N, …)."""
    return per_point.view(-1, *[1] * (like.dim() - 1))


def row_norm(rows: Tensor, order: int = 2) -> Tensor:
    """‖·‖ of each row of (N, …) for `order` 1 or 2, shape (N,), in the precision of `rows`."""
    flat = rows.flatten(1).contiguous()
    while flat.shape[1] > CHUNK:  # the norm of a row is the norm of the norms of its pieces
        pieces = [torch.linalg.vector_norm(piece.contiguous(), order, dim=1) for piece in flat.split(CHUNK, dim=1)]
        flat = torch.stack(pieces, dim=1)
    return torch.linalg.vector_norm(flat, order, dim=1)


def per_point_norm(delta: Tensor) -> Tensor:
    """‖·‖₂ of each row of (N, …), shape (N,), safe against under- and overflow of the squares."""
    largest = _largest(delta)
    return row_norm(delta / largest) * largest.flatten()


def unit(delta: Tensor) -> Tensor:
    """Each row of (N, …) divided by its ‖·‖₂, down to subnormal numbers (nearly saturated losses); zero stays zero."""
    scaled = delta / _largest(delta)
    return scaled / column(row_norm(scaled).clamp_min(1.0), scaled)


def _largest(delta: Tensor) -> Tensor:
    """Largest magnitude in each row of (N, …), shape (N, 1, …); 1 for rows of zeros."""
    largest = delta.flatten(1).abs().amax(dim=1)
    return column(torch.where(largest > 0, largest, 1.0), delta)


def exact_total(values: Tensor, bound: float) -> Tensor:
    """The sum over the last dimension of `values` (…, n), float64 (…), the same for any order and any zeros between.

    Every number is first rounded to a multiple of 2⁻⁴⁸ of the bound, so that no addition rounds
    (Demmel & Nguyen 2015, "Parallel reproducible summation", section II, with a bound that is known beforehand).

    Args:
        bound: what no partial sum exceeds in magnitude by more than a factor of 8.
    """
    step = 2.0 ** (math.ceil(math.log2(bound)) - KEPT_BITS)
    return (values.double() / step).round_().sum(dim=-1) * step
