"""The simulation of a cluster, against what can be worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.workers import AHEAD, BANDWIDTH, Costs, bound, efficiency


def work(seconds: float = 1.0, size: int = 1, model: int = 0) -> Costs:
    return Costs("", 100, (seconds,), size, model)


@pytest.mark.parametrize(("workers", "tasks", "share"), [(1, 8, 1.0), (10, 8, 0.8), (10, 400, 1.0), (100, 8, 0.08)])
def test_where_sending_is_free_only_the_number_of_tasks_counts(workers: int, tasks: int, share: float) -> None:
    assert efficiency(work(), 100 * tasks, workers, 0.0) == pytest.approx(share)


def test_a_driver_that_takes_long_keeps_few_busy() -> None:
    single, parcels = bound(work(size=2**20), sending=0.1)
    assert single == pytest.approx(10, rel=0.02)
    assert parcels > single
    busy = 100 * efficiency(work(size=2**20), 100 * 399, 100, 0.1)  # too few for parcels of two
    assert busy == pytest.approx(single, rel=0.1)
    assert AHEAD * 100 < 399


def test_a_network_that_is_full_does_not_get_better_with_parcels() -> None:
    heavy = work(size=int(BANDWIDTH // 10))
    assert bound(heavy, 0.0) == pytest.approx((10, 10))
    assert 100 * efficiency(heavy, 100 * 4000, 100, 0.0) == pytest.approx(10, rel=0.05)


def test_the_model_goes_to_each_node_once() -> None:
    slow = work(model=int(BANDWIDTH))  # a second to a node of 16
    assert efficiency(slow, 100 * 32, 32, 0.0) == pytest.approx(1 / 3)
