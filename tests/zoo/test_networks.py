"""The zoo's networks: recipes that decide the file, training that can be resumed, and what `load` says of an entry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from maskaudit import zoo
from maskaudit.data import load_data
from maskaudit.errors import UsageError
from maskaudit.loading import LoadedModel
from maskaudit.networks.registry import ARCHITECTURES, parse
from maskaudit.threat import ThreatModel
from maskaudit.train import METHODS, TrainConfig, partial_path
from maskaudit.zoo import networks
from maskaudit.zoo.certificates import interval_certificate
from maskaudit.zoo.interface import ZooEntry
from maskaudit.zoo.networks import NETWORKS, ZooNetwork, cache_path, network
from maskaudit.zoo.recipes import RECIPES

TINY = ZooNetwork(TrainConfig("lsq", model="small_cnn(width=2)", epochs=2), {"weight": 0.1}, points=96)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network of two epochs on 96 points, in a cache of its own; the path of its file."""
    monkeypatch.setenv("MASKAUDIT_CACHE", str(tmp_path))
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    return cache_path("tiny")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_names_a_known_method_and_architecture(name: str) -> None:
    spec = NETWORKS[name]
    assert spec.config.method in {*METHODS, *RECIPES}
    assert spec.config.method in METHODS or spec.options.keys() <= _options(spec.config.method)
    assert not (spec.config.method in METHODS and spec.options)
    assert spec.config.model is None or parse(spec.config.model)[0] in ARCHITECTURES


def _options(method: str) -> set[str]:
    import inspect

    return {*inspect.signature(RECIPES[method].create).parameters} - {"plan", "model"}


@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=lambda entry: entry.name)
def test_every_entry_rests_on_a_network_of_its_data(entry: ZooEntry) -> None:
    assert NETWORKS[entry.network].config.data == entry.data
    assert entry.masked == (entry.level != "")


def test_no_method_of_the_zoo_hides_one_of_the_trainer() -> None:
    assert not set(METHODS) & set(RECIPES)


@pytest.mark.parametrize(
    "other",
    [
        replace(TINY, options={"weight": 0.2}),
        replace(TINY, points=95),
        replace(TINY, config=replace(TINY.config, seed=1)),
        replace(TINY, config=replace(TINY.config, threat=ThreatModel("L2", 0.5))),
    ],
)
def test_another_recipe_is_another_file(tiny: Path, monkeypatch: pytest.MonkeyPatch, other: ZooNetwork) -> None:
    monkeypatch.setitem(NETWORKS, "other", other)
    assert cache_path("other").name.rpartition("-")[2] != tiny.name.rpartition("-")[2]


def test_a_network_is_trained_once_and_the_same_again(tiny: Path) -> None:
    first = network("tiny")
    assert tiny.is_file()
    assert not partial_path(tiny).exists()
    stamp = tiny.stat().st_mtime_ns
    assert network("tiny").sha256 == first.sha256
    assert tiny.stat().st_mtime_ns == stamp
    tiny.unlink()
    assert network("tiny").sha256 == first.sha256


def test_an_interrupted_network_goes_on_where_it_stopped(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = network("tiny").sha256
    tiny.unlink()
    stopped = iter((False, True))
    recipe = RECIPES["lsq"]

    class Stops(recipe.create):  # type: ignore[name-defined,misc]
        seen = -1

        def loss(self, model: nn.Module, batch: object) -> torch.Tensor:
            epoch = batch.epoch  # type: ignore[attr-defined]
            if epoch != Stops.seen:
                Stops.seen = epoch
                if next(stopped):
                    raise KeyboardInterrupt
            return super().loss(model, batch)  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(networks, "RECIPES", {**RECIPES, "lsq": replace(recipe, create=Stops)})
        with pytest.raises(KeyboardInterrupt):
            network("tiny")
    assert partial_path(tiny).is_file()
    assert not tiny.is_file()
    seen: list[int] = []

    class Counts(recipe.create):  # type: ignore[name-defined,misc]
        def loss(self, model: nn.Module, batch: object) -> torch.Tensor:
            seen.append(batch.epoch)  # type: ignore[attr-defined]
            return super().loss(model, batch)  # type: ignore[no-any-return]

    monkeypatch.setattr(networks, "RECIPES", {**RECIPES, "lsq": replace(recipe, create=Counts)})
    assert network("tiny").sha256 == whole
    assert set(seen) == {1}, "only the second epoch was left to train"


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(UsageError, match="no network 'nothing'; it has standard"):
        network("nothing")


def test_load_says_the_entrys_data_and_ball(standard: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ZooEntry("probe", "A probe", False, "", "standard", family="healthy")
    monkeypatch.setitem(zoo.ZOO, "probe", entry)
    metadata = zoo.load("probe").metadata
    assert metadata["threat"] == {"norm": "Linf", "eps": 0.2, "bounds": [0.0, 1.0]}
    assert metadata["data"] == "digits"
    assert "certified" not in metadata
    monkeypatch.setitem(zoo.ZOO, "probe", replace(entry, norm="L2", eps=0.5))
    assert zoo.load("probe").metadata["threat"] == {"norm": "L2", "eps": 0.5, "bounds": [0.0, 1.0]}
    monkeypatch.setitem(zoo.ZOO, "probe", replace(entry, norm="L2"))
    assert zoo.load("probe").metadata["threat"]["eps"] is None, "the customary radius, not that of another norm"


def test_load_states_what_is_certified(standard: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ZooEntry("probe", "A probe", False, "", "standard", family="robust", certificate=interval_certificate)
    monkeypatch.setitem(zoo.ZOO, "probe", replace(entry, eps=1e-4))
    data = load_data("digits")
    assert isinstance(standard.module, nn.Module)
    proven = interval_certificate(standard.module, data.x, data.y, 1e-4)
    certified = zoo.load("probe").metadata["certified"]
    assert 0.5 < certified == pytest.approx(float(proven.double().mean()))
    monkeypatch.setitem(zoo.ZOO, "probe", entry)
    assert zoo.load("probe").metadata["certified"] < certified
