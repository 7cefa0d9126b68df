r"""Largest eigenvalue of many symmetric operators at once, each restricted to a complement.

For operators :math:`H_i` (one per point) and unit vectors :math:`u_i`, Lanczos
runs on :math:`P_i H_i P_i` with :math:`P_i = I - u_i u_i^\top`, in float64 with full
reorthogonalisation against all earlier vectors and :math:`u_i` (Golub & Van Loan 2013,
Matrix Computations, section 10.3). Only products :math:`H_i q` are needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: A new Lanczos vector shorter than this share of what it was computed from is rounding: the subspace is invariant.
#: Products come from float32 arithmetic.
BREAKDOWN = 1e-6


def largest_eigenpair(
    product: Callable[[Tensor], Tensor], start: Tensor, avoid: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Largest (signed) Ritz value and its vector within the complement of `avoid`.

    Args:
        product: maps (B, D) to (B, D), row i multiplied by the symmetric H_i.
        start: (B, D) float64 start vectors, not inside the span of `avoid`.
        avoid: (B, D) float64 unit vectors, or zero rows where nothing is to be avoided.
        steps: Lanczos steps; with `steps` ≥ D − 1 the value is exact.

    Returns:
        Values (B,) and unit vectors (B, D), float64. Where the complement is empty, 0 and a zero vector.
    """
    q, length = _normalised(_project(start, avoid[:, None]))
    alive = length > 0
    basis: list[Tensor] = []
    diagonal, off_diagonal = [], []
    for _ in range(min(steps, start.shape[1])):
        basis.append(q)
        image = _project(product(q), avoid[:, None])
        alpha = (q * image).sum(dim=1)
        rest = image
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            rest = _project(_project(rest, torch.stack(basis, dim=1)), avoid[:, None])
        following, beta = _normalised(rest)
        diagonal.append(torch.where(alive, alpha, torch.nan))
        alive = alive & (beta > BREAKDOWN * torch.maximum(image.norm(dim=1), alpha.abs()))
        off_diagonal.append(torch.where(alive, beta, torch.zeros_like(beta)))
        q = torch.where(alive[:, None], following, torch.zeros_like(following))
        if not bool(alive.any()):
            break
    return _top_ritz(torch.stack(diagonal, dim=1), torch.stack(off_diagonal, dim=1), torch.stack(basis, dim=1))


def _top_ritz(diagonal: Tensor, off_diagonal: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenpair of the tridiagonal matrices; entries past a breakdown are NaN and kept out of the way."""
    first = diagonal[:, :1].nan_to_num(0.0)
    out_of_the_way = first - 1 - first.abs()  # below the first Rayleigh quotient, hence below the largest value
    empty = diagonal[:, 0].isnan()
    t = torch.diag_embed(torch.where(diagonal.isnan(), out_of_the_way, diagonal))
    if diagonal.shape[1] > 1:
        t = t + torch.diag_embed(off_diagonal[:, :-1], 1) + torch.diag_embed(off_diagonal[:, :-1], -1)
    values, vectors = torch.linalg.eigh(t)
    ritz = torch.einsum("bkd,bk->bd", basis, vectors[:, :, -1])
    return torch.where(empty, torch.zeros_like(values[:, -1]), values[:, -1]), _normalised(ritz)[0]


def _project(v: Tensor, basis: Tensor) -> Tensor:
    """v (B, D) without its part in the span of the orthonormal (or zero) rows of basis (B, K, D)."""
    return v - torch.einsum("bkd,bk->bd", basis, torch.einsum("bkd,bd->bk", basis, v))


def _normalised(v: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of (B, D) at length 1 (zero rows stay) and their lengths (B,)."""
    length = v.norm(dim=1)
    return v / length.clamp_min(1e-300)[:, None], length
