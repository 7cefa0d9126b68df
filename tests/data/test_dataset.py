"""`Dataset`: what it refuses, and how it is sampled."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from maskaudit.data import Dataset
from maskaudit.errors import InputError, UsageError


def make(**changes: Any) -> Dataset:
    fields: dict[str, Any] = {
        "name": "toy",
        "x": torch.linspace(0, 1, 40).reshape(10, 4),
        "y": torch.arange(10) % 3,
        "num_classes": 3,
        "bounds": (0.0, 1.0),
    }
    return Dataset(**(fields | changes))


REFUSED = {
    "float64": ({"x": torch.zeros(10, 4, dtype=torch.float64)}, InputError, "float32 inputs and int64 labels"),
    "int32 labels": ({"y": torch.zeros(10, dtype=torch.int32)}, InputError, "int32"),
    "too few labels": ({"y": torch.zeros(9, dtype=torch.int64)}, InputError, "one label per input"),
    "label matrix": ({"y": torch.zeros(10, 1, dtype=torch.int64)}, InputError, "one label per input"),
    "no points": ({"x": torch.zeros(0, 4), "y": torch.zeros(0, dtype=torch.int64)}, InputError, "no points"),
    "empty points": ({"x": torch.zeros(10, 0)}, InputError, "no points"),
    "one class": ({"y": torch.zeros(10, dtype=torch.int64), "num_classes": 1}, InputError, "at least 2 classes"),
    "label too large": ({"num_classes": 2}, InputError, "0 … 1, found 0 … 2"),
    "negative label": ({"y": torch.arange(10) % 3 - 1}, InputError, "found -1 … 1"),
    "NaN": ({"x": torch.full((10, 4), math.nan)}, InputError, "10 of 10 inputs hold NaN"),
    "infinity": ({"x": torch.full((10, 4), math.inf)}, InputError, "NaN or infinite"),
    "outside": ({"x": torch.full((10, 4), -0.5)}, InputError, "--bounds -1,1"),
    "bytes as floats": ({"x": torch.full((10, 4), 200.0)}, InputError, "--bounds 0,255"),
    "names": ({"class_names": ("a", "b")}, InputError, "each of 3 classes, got 2"),
    "empty bounds": ({"bounds": (1.0, 1.0)}, UsageError, "bounds"),
    "infinite bounds": ({"bounds": (0.0, math.inf)}, UsageError, "bounds"),
    "split": ({"split": "valid"}, UsageError, "train, test or all"),
}


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**changes)


def test_rounding_is_moved_onto_the_bounds() -> None:
    x = torch.linspace(0, 1, 40).reshape(10, 4)
    x[0, 0], x[9, 3] = -2.98e-08, 1 + 2**-23
    data = make(x=x)
    assert data.x.min() == 0
    assert data.x.max() == 1
    assert torch.equal(data.x[1:9], x[1:9])


def test_samples_are_nested_unique_and_aligned() -> None:
    x = torch.rand(500, 3)
    data = make(x=x, y=torch.arange(500) % 3)
    index, points, labels = data.sample(400, seed=7)
    small = data.sample(100, seed=7)[0]
    assert torch.equal(index[:100], small)
    assert len(index.unique()) == 400
    assert torch.equal(points, x[index])
    assert torch.equal(labels, data.y[index])


def test_sample_depends_on_the_seed_and_not_on_torch() -> None:
    data = make(x=torch.rand(500, 3), y=torch.arange(500) % 3)
    before = torch.get_rng_state()
    first = data.sample(50, seed=1)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(data.sample(50, seed=1)[0], first)
    assert not torch.equal(data.sample(50, seed=2)[0], first)


def test_sample_is_uniform_over_points() -> None:
    data = make(x=torch.rand(50, 3), y=torch.arange(50) % 3)
    drawn = torch.cat([data.sample(10, seed=seed)[0] for seed in range(400)]).bincount(minlength=50)
    # 400 draws with chance 1/5 each: mean 80, standard deviation 8.
    assert drawn.min() > 40
    assert drawn.max() < 120


def test_sample_gives_everything_when_there_is_less() -> None:
    index = make().sample(1000, seed=0)[0]
    assert torch.equal(index.sort().values, torch.arange(10))


def test_sample_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        make().sample(0, seed=0)
