"""The engine benchmark: what it counts, how it merges, and what it calls a slip; no time is looked at."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.records import archived
from maskaudit.attacks.interface import Attempt

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    return importlib.import_module("benchmarks.engine")


def row(ratio: float, **changes: Any) -> dict[str, Any]:
    base = {"network": "small-cnn", "attack": "pgd", "steps": 40, "targets": 1, "points": 100, "threads": 1,
            "engine": "maskaudit", "ratio": ratio, "lowest": ratio, "highest": ratio, "seconds": 1.0,
            "machine": "m"}  # fmt: skip
    return {**base, **changes}


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (row(1.05), []),
        (row(1.12), []),
        (row(0.90), []),
        (row(1.40), ["ratio 1.400, committed 1.050"]),
        (row(1.05, points=7), ["nothing committed"]),
    ],
)
def test_a_ratio_slips_when_it_rises_past_the_tolerance(
    engine: ModuleType, now: dict[str, Any], says: list[str]
) -> None:
    sentences = engine.slipped([row(1.05)], [now])
    assert len(sentences) == len(says)
    assert all(part in sentence for part, sentence in zip(says, sentences, strict=True))


def test_new_rows_replace_old_ones_of_the_same_key(engine: ModuleType) -> None:
    rows = engine.document_of([row(1.3), row(2.0, engine="other"), row(1.1), row(1.0, points=50)])["rows"]
    assert [(r["engine"], r["points"], r["ratio"]) for r in rows] == [
        ("maskaudit", 50, 1.0), ("maskaudit", 100, 1.1), ("other", 100, 2.0),
    ]  # fmt: skip


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce", "apgd-t", "square", "finite-differences"])
def test_every_engine_is_counted_by_the_passes_it_makes(engine: ModuleType, attack: str) -> None:
    """A network that nothing breaks: each engine makes at least its steps and at most a few passes more."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 5))
    with torch.no_grad():
        network[1].bias.copy_(torch.tensor([100.0, 0, 1, 2, 3]))
    x, y = torch.rand(6, 1, 3, 3), torch.zeros(6, dtype=torch.int64)
    steps, targets = 8, (2 if attack == "apgd-t" else 1)
    for name, run in engine.subjects(attack, steps, targets, 1e-3).items():
        counted = engine.Counted(network).eval()
        run(counted, x, y)
        assert counted.forwards >= 6 * steps * targets, name
        assert counted.forwards <= 6 * (steps + 6) * targets + 60, name
        assert (counted.backwards > 0) == (attack in ("pgd", "apgd-ce", "apgd-t")), name


def test_the_floor_is_measured_per_point(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "clocked", lambda work, _device: (work(), 12.0)[1])
    assert engine.floor(nn.Flatten(), torch.rand(6, 1, 2, 2)) == (2.0, 2.0)
    assert engine.floor(nn.Flatten(), torch.rand(engine.BATCH + 9, 4))[0] == 12.0 / engine.BATCH


@pytest.mark.parametrize("name", ["small-cnn", "strided-cnn", "resnet18", "wrn28-10"])
def test_networks_have_their_shape(engine: ModuleType, name: str) -> None:
    factory, shape = engine.NETWORKS[name]
    with torch.device("meta"):
        network = factory()
        assert network(torch.rand(2, *shape)).shape == (2, 10)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert millions == pytest.approx(
        {"small-cnn": 0.106, "strided-cnn": 0.166, "resnet18": 11.2, "wrn28-10": 36.5}[name], rel=0.02
    )


@pytest.mark.parametrize(
    ("attack", "channels", "points", "expected"),
    [
        ("pgd", 1, 100, (40, 1)), ("apgd-t", 1, 100, (100, 3)), ("square", 1, 1_000, (20, 1)),
        ("pgd", 1, 10_000, (20, 1)),
        ("pgd", 3, 999, (10, 1)), ("apgd-t", 3, 1_000, (4, 2)), ("square", 3, 10_000, (2, 1)),
    ],
)  # fmt: skip
def test_many_points_take_few_steps(
    engine: ModuleType, attack: str, channels: int, points: int, expected: tuple[int, int]
) -> None:
    assert engine.plan(attack, (channels, 8, 8), points) == expected


def test_devices_are_compared_on_points_of_which_some_break(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = importlib.import_module("benchmarks.engine_agreement")
    monkeypatch.setattr(agreement, "AGREEMENT_POINTS", 40)
    wanted = {name: agreement.AGREEMENT_ATTACKS[name] for name in ("pgd", "noise")}
    monkeypatch.setattr(agreement, "AGREEMENT_ATTACKS", wanted)
    rows = agreement.agreement_rows("cpu")
    assert [row["attack"] for row in rows] == ["pgd", "noise"]
    assert all(0 < row["broken"] < 40 and row["same_fate"] >= 39 for row in rows)
    page = engine.table({"rows": [], "memory": [], "agreement": rows}, "cpu")
    assert "| pgd | 40 |" in page


def test_a_points_fate_that_differs_is_counted(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    agreement = importlib.import_module("benchmarks.engine_agreement")
    calls: list[int] = []

    def fickle(target: Any, x: torch.Tensor, y: torch.Tensor, **_: Any) -> Attempt:
        calls.append(target.batch_size)
        first = torch.full((len(x),), -1)
        first[: len(calls)] = 5
        return Attempt(x, first, torch.ones_like(first))

    monkeypatch.setattr(agreement, "AGREEMENT_ATTACKS", {"fickle": (fickle, {})})
    (row,) = agreement.agreement_rows("cpu")
    assert (row["broken"], row["same_fate"], row["same_step"]) == (1, row["points"] - 1, row["points"] - 1)
    assert len(set(calls)) == 2


def test_the_committed_table_is_the_committed_figures(engine: ModuleType) -> None:
    document = engine.document_of(archived("engine-cpu.jsonl"))
    assert engine.table(document, "cpu") == (BENCHMARKS / "engine-cpu.md").read_text()
    assert {r["engine"] for r in document["rows"]} >= {"maskaudit", "torchattacks"}
