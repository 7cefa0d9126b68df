"""`--features`: what a file may say of the columns of a table, and how the points are held against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskaudit.data.features import read_features
from maskaudit.data.interface import Dataset
from maskaudit.errors import InputError, MaskauditError, UsageError
from maskaudit.threat import ThreatModel

X = torch.tensor([[40.0, 0.5, 1, 0, 1], [18.0, 0.25, 0, 1, 0], [90.0, 1.0, 1, 0, 0]])
NAMES = ("age", "dose", "well", "ill", "sex")
TOML = """
feature = [
  { column = "age", kind = "integer", bounds = [18, 90], eps = 3 },
  { column = 1, eps = 0.2 },
  { columns = ["well", "ill"], kind = "categorical" },
  { column = "sex", kind = "frozen" },
]
"""


def points(x: torch.Tensor = X) -> Dataset:
    return Dataset("t", x, torch.tensor([0, 1, 1]), 2, (-1e9, 1e9), columns=NAMES)


def write(folder: Path, content: Any) -> Path:
    (folder / "f").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "f"


def test_each_feature_has_its_range_and_radius(tmp_path: Path) -> None:
    table = read_features(write(tmp_path, TOML), points(), (0, 1))
    threat = table.threat(0.05)
    assert threat.eps == 0.2  # the largest share of a range: that of the dose
    assert threat.features is not None
    encoded = table.encode(points(), threat.features)
    assert torch.allclose(encoded.x[:, 0], (X[:, 0] - 18) / 72)
    assert torch.equal(threat.features.decode(encoded.x), X)
    radius = threat.features.radius(threat.eps, encoded.x)
    assert torch.allclose(radius, torch.tensor([3 / 72, 0.2, 1, 1, 0]))
    assert "1 categorical, 1 integer, 1 frozen" in table.sentence()
    assert ThreatModel.from_dict(json.loads(json.dumps(threat.to_dict()))) == threat


def test_json_says_the_same(tmp_path: Path) -> None:
    entries = [{"column": "age", "bounds": [18, 90]}, {"columns": ["well", "ill"], "kind": "categorical"}]
    table = read_features(write(tmp_path, {"feature": entries}), points(), (0, 1))
    threat = table.threat(0.05)
    assert threat.eps == 0.05
    assert threat.features is not None
    assert torch.allclose(threat.features.radius(0.05, X), torch.tensor([0.05, 0.05, 1, 1, 0.05]))


FILES: dict[str, tuple[Any, type[MaskauditError], str]] = {
    "no table": ({}, InputError, "feature is missing"),
    "unknown field": ({"feature": [{"column": 0, "epz": 1}]}, InputError, "did you mean eps"),
    "unknown kind": ({"feature": [{"column": 0, "kind": "text"}]}, InputError, "kind must be"),
    "empty bounds": ({"feature": [{"column": 0, "bounds": [1, 1]}]}, InputError, "smallest first"),
    "infinite": ('feature = [{ column = 0, bounds = [0, inf] }]', InputError, "finite"),
    "no syntax": ("feature = [", InputError, "not valid TOML"),
    "deep": ("{" + '"feature":[' * 5000, InputError, "not valid JSON"),
    "no column": ({"feature": [{"kind": "frozen"}]}, UsageError, "either column"),
    "unknown column": ({"feature": [{"column": "aeg"}]}, UsageError, "did you mean age"),
    "column too far": ({"feature": [{"column": 5}]}, UsageError, "has 5, counted from 0"),
    "twice": ({"feature": [{"column": 0}, {"column": "age"}]}, UsageError, "describe 'age' twice"),
    "half a unit": ({"feature": [{"column": 0, "kind": "integer", "bounds": [0, 99], "eps": 0.5}]}, UsageError,
                    "at least 1"),
    "broken bounds": ({"feature": [{"column": 0, "kind": "integer", "bounds": [0, 1.5]}]}, UsageError, "whole numbers"),
    "one category": ({"feature": [{"column": "ill", "kind": "categorical"}]}, UsageError, "two or more columns"),
    "frozen radius": ({"feature": [{"column": 0, "kind": "frozen", "eps": 1}]}, UsageError, "has no eps"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "error", "message"), FILES.values(), ids=FILES.keys())
def test_refused_files(tmp_path: Path, content: Any, error: type[MaskauditError], message: str) -> None:
    with pytest.raises(error, match=message):
        read_features(write(tmp_path, content), points(), (0, 1))


def test_nothing_left_to_change(tmp_path: Path) -> None:
    table = read_features(write(tmp_path, {"feature": [{"columns": list(NAMES), "kind": "frozen"}]}), points(), (0, 1))
    with pytest.raises(UsageError, match="all of them are frozen"):
        table.threat(0.1)


def test_features_are_for_tables(tmp_path: Path) -> None:
    images = Dataset("t", torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), 2, (0, 1))
    with pytest.raises(UsageError, match=r"is for tables \(N, D\)"):
        read_features(write(tmp_path, TOML), images, (0, 1))


VALUES = {
    "outside": (0, 91.0, "age holds 91, outside its bounds 18 … 90"),
    "half": (0, 40.5, "age holds 40.5, not a whole number"),
    "two categories": (3, 1.0, "the columns well, ill are not 1 for one category"),
    "usual bounds": (1, 1.5, r"dose holds 1.5, outside its bounds 0 … 1"),
}


@pytest.mark.parametrize(("column", "value", "message"), VALUES.values(), ids=VALUES.keys())
def test_points_that_no_feature_may_have(tmp_path: Path, column: int, value: float, message: str) -> None:
    table = read_features(write(tmp_path, TOML), points(), (0, 1))
    features = table.threat(0.05).features
    assert features is not None
    x = X.clone()
    x[0, column] = value
    with pytest.raises(InputError, match=message):
        table.encode(points(x), features)


def test_a_frozen_feature_needs_no_bounds(tmp_path: Path) -> None:
    x = X.clone()
    x[:, 0] = torch.linspace(3, 900, len(x))
    others = [{"column": name, "bounds": [-1000, 1000]} for name in NAMES[1:]]
    content = {"feature": [{"column": NAMES[0], "kind": "frozen"}, *others]}
    table = read_features(write(tmp_path, content), points(x), (0, 1))
    features = table.threat(0.1).features
    assert features is not None
    assert features.scale[0] == 0
    coded = table.encode(points(x), features).x[:, 0]
    assert torch.allclose(features.low[0] + coded * features.width[0], x[:, 0])
