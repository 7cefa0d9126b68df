"""The benchmark of families on plain records: what counts as a fault, what is joined, what the page says."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("onnx")

from benchmarks import families
from benchmarks.families_networks import NETWORKS

NAME = next(iter(NETWORKS))


def record(noise: float = 0.0, **forms: dict[str, Any]) -> dict[str, Any]:
    return {"name": NAME, "machine": "here", "noise": [noise, noise], "parameters": 1_000_000, "forms": forms}


GOOD = {"scores": 0.0, "gradients": 1e-6, "cost": 3.0, "ops": 7, "accused": ""}


def test_only_what_differs_fails_or_is_accused_is_a_fault() -> None:
    assert families.faults(record(eager=GOOD, pt2={"refused": "no"}, onnx={"export": "no"})) == []
    assert families.faults(record(eager={**GOOD, "accused": "Suspect"})) == ["eager accused: Suspect"]
    assert families.faults(record(eager={"failed": "Error"})) == ["eager fails: Error"]
    far = {**GOOD, "gradients": 1e-3}
    assert families.faults(record(onnx=far)) == ["onnx differs: scores 0.0, gradients 0.001"]
    assert families.faults(record(noise=2e-4, onnx=far)) == []


def test_forms_tried_at_different_times_are_joined() -> None:
    done: dict[str, Any] = {}
    for part in (record(eager=GOOD), record(pt2=GOOD)):
        families.join(done, part)
    assert set(done[NAME]["forms"]) == {"eager", "pt2"}


def test_the_page_counts_and_shows() -> None:
    page = families.page(
        [record(eager=GOOD, onnx={**GOOD, "scores": 0.5, "accused": "Suspect"}, pt2={"refused": "a|b"})]
    )
    assert "- eager: 1 open and are traced, 0 accused, 0 differ" in page
    assert "- onnx: 1 open and are traced, 1 accused, 1 differ" in page
    assert "refused: a/b" in page
    assert "/ 1e-06 in float64, × 3" in families.page([record(onnx={**GOOD, "float64": True})])
    assert "**differs** 5e-01 / 1e-06, × 3, **Suspect**" in page


def test_every_network_is_named_once_and_has_a_shape() -> None:
    assert len({network.name for network in NETWORKS.values()}) == len(NETWORKS)
    assert sum(name.startswith("timm:") for name in NETWORKS) >= 60
    assert all(network.shape for network in NETWORKS.values())
