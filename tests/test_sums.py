"""Sums that do not depend on company, layout, threads or order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from maskaudit.sums import CHUNK, exact_total, row_norm

SHAPES = [(33, 1), (33, 3), (33, 12), (33, 67), (33, 784), (5, 3, 32, 32), (3, 3, 2, CHUNK)]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def strided(x: Tensor) -> Tensor:
    """The same numbers, point by point apart in memory."""
    return x.flatten(1).t().contiguous().t().view(x.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_rows_norm_is_its_own(threads: int, shape: tuple[int, ...], order: int, dtype: torch.dtype) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    whole = row_norm(x, order)
    for size in (1, 2, 7):
        assert torch.equal(torch.cat([row_norm(part, order) for part in x.split(size)]), whole)
        assert torch.equal(torch.cat([row_norm(strided(part), order) for part in x.split(size)]), whole)
    torch.set_num_threads(3 - threads)
    assert torch.equal(row_norm(x, order), whole)
    exact = torch.linalg.vector_norm(x.double().flatten(1), order, dim=1)
    assert torch.allclose(whole.double(), exact, rtol=1e-5 if dtype == torch.float32 else 1e-12)


def test_an_exact_total_knows_no_order_and_no_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(40, 3, 500, generator=generator).square() * 1e-3
    total = exact_total(values, 1.0)
    for _ in range(5):
        order = torch.randperm(500, generator=generator)
        padded = torch.zeros(40, 3, 700)
        padded[..., torch.randperm(700, generator=generator)[:500]] = values[..., order]
        assert torch.equal(exact_total(values[..., order], 1.0), total)
        assert torch.equal(exact_total(padded, 1.0), total)
    assert not torch.equal(values.flip(2).sum(2), values.sum(2)), "the order must matter here"
    assert torch.allclose(total, values.double().sum(2), rtol=0, atol=500 * 2.0**-48)
