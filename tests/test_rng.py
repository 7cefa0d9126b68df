"""Counter-based random numbers: one stream per point, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from maskaudit.rng import PointRNG

POINTS = torch.arange(200)
Draw = Callable[[PointRNG], Tensor]
DRAWS: dict[str, Draw] = {
    "uniform": lambda rng: rng.uniform((3, 4), step=5),
    "normal": lambda rng: rng.normal((12,), step=5),
    "signs": lambda rng: rng.signs((2, 2, 3), step=5),
    "integers": lambda rng: rng.integers(10**12, (5,), step=5),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_draw_depends_on_the_point_alone(draw: Draw) -> None:
    rng = PointRNG.create(3, "attack", POINTS)
    whole = draw(rng)
    order = torch.randperm(len(POINTS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(rng.select(order)), whole[order])
    assert torch.equal(draw(rng.select(POINTS % 7 == 2)), whole[POINTS % 7 == 2])
    assert torch.equal(draw(PointRNG.create(3, "attack", torch.tensor([17]))), whole[17:18])
    assert torch.equal(torch.cat([draw(rng.select(part)) for part in order.split(9)]), whole[order])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_seed_stream_and_step_each_change_everything(draw: Draw) -> None:
    base = PointRNG.create(0, "a", POINTS)
    for other in (PointRNG.create(1, "a", POINTS), PointRNG.create(0, "b", POINTS), base.fork("a"), base.fork("b")):
        assert float((draw(base) == draw(other)).float().mean()) < 0.6  # signs agree by chance on half
    assert torch.equal(draw(base.fork("x")), draw(PointRNG.create(0, "a", POINTS).fork("x")))


def test_the_callers_generator_is_untouched() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for draw in DRAWS.values():
        draw(PointRNG.create(0, "a", POINTS))
    assert torch.equal(torch.get_rng_state(), before)


def test_step_as_a_tensor_gives_each_point_its_own_step() -> None:
    rng = PointRNG.create(0, "a", POINTS)
    mixed = rng.normal((6,), step=POINTS % 3)
    for step in range(3):
        rows = step == POINTS % 3
        assert torch.equal(mixed[rows], rng.select(rows).normal((6,), step=step))


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
@pytest.mark.parametrize("across", ["points", "steps", "positions"])
def test_uniform_and_normal_have_their_distribution_along_every_counter(seed: int, across: str) -> None:
    n = 20_000
    points = torch.arange(n) if across == "points" else torch.zeros(n, dtype=torch.int64)
    step: int | Tensor = torch.arange(n) if across == "steps" else 0
    if across == "positions":
        rng = PointRNG.create(seed, "ks", torch.tensor([4]))
        uniform, normal = rng.uniform((n,))[0], rng.normal((n,), step=1)[0]
    else:
        rng = PointRNG.create(seed, "ks", points)
        uniform, normal = rng.uniform((), step=step), rng.fork("n").normal((), step=step)
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(normal.numpy(), "norm").pvalue > 1e-3
    assert abs(float(torch.corrcoef(torch.stack([uniform[:-1], uniform[1:]]))[0, 1])) < 0.03


def test_ranges() -> None:
    rng = PointRNG.create(0, "range", torch.arange(500))
    uniform = rng.uniform((200,))
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert bool(torch.isfinite(rng.normal((200,))).all())
    signs = rng.signs((200,))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.02


@pytest.mark.parametrize("high", [1, 2, 7, 1000])
def test_integers_cover_their_range_evenly(high: int) -> None:
    drawn = PointRNG.create(0, "int", torch.arange(100)).integers(high, (300,)).flatten()
    counts = torch.bincount(drawn, minlength=high)
    assert len(counts) == high
    if high > 1:
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_integers_take_a_bound_per_point() -> None:
    high = torch.arange(1, 101)
    drawn = PointRNG.create(0, "int", torch.arange(100)).integers(high[:, None], (400,))
    assert bool((drawn >= 0).all())
    assert bool((drawn < high[:, None]).all())
    assert drawn.amax(dim=1)[9] == 9
    assert PointRNG.create(0, "int", torch.arange(100)).integers(high).shape == (100,)


def test_forks_are_independent() -> None:
    rng = PointRNG.create(0, "root", torch.arange(2000))
    a, b = rng.fork("a").normal((10,)).flatten(), rng.fork("b").normal((10,)).flatten()
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.03


def test_coins_are_fair_along_every_position_and_the_signs_of_the_same_draw() -> None:
    rng = PointRNG.create(0, "coins", torch.arange(4000))
    coins = rng.coins((130,), step=2)
    assert coins.dtype == torch.bool
    assert coins.shape == (4000, 130)
    assert float((coins.float().mean(0) - 0.5).abs().max()) < 0.04
    assert float(torch.corrcoef(coins.float().T).fill_diagonal_(0).abs().max()) < 0.09
    assert torch.equal(rng.signs((130,), step=2) > 0, coins)
    assert torch.equal(rng.coins((5,), step=2), coins[:, :5])


def test_several_steps_at_once_are_the_steps_one_by_one() -> None:
    rng = PointRNG.create(0, "block", torch.arange(6))
    steps = torch.arange(4) + 10 * torch.arange(6)[:, None]
    block = rng.uniform((3, 5), step=steps)
    assert block.shape == (6, 4, 3, 5)
    for number in range(4):
        assert torch.equal(block[:, number], rng.uniform((3, 5), step=steps[:, number]))
