"""`hf:` and `robustbench:`: with stand-ins for the packages, and with transformers itself where it is installed."""

from __future__ import annotations

import enum
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from maskaudit.errors import InputError, UsageError
from maskaudit.loading import arch
from maskaudit.loading.vision import ready_torchvision
from maskaudit.sources import load_model

from .nets import Net


class Config:
    """Of a classifier of images."""

    model_type = "net"


class AudioConfig(Config):
    """Of a classifier of audio."""


class TextConfig(Config):
    """Of what reads tokens."""

    model_type = "reader"


class AutoConfig:
    """Knows the configurations of three models."""

    known: ClassVar = {"some/model": Config, "some/audio": AudioConfig, "some/text": TextConfig}

    @classmethod
    def from_pretrained(cls, name: str, *, trust_remote_code: bool, **entries: Any) -> Config:
        assert not trust_remote_code
        if name not in cls.known:
            raise OSError("not here")
        config = cls.known[name]()
        vars(config).update(entries)
        return config


class Auto:
    """Loads the one network that there is."""

    lacking: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(
        cls, name: str, *, config: Config, trust_remote_code: bool, output_loading_info: bool
    ) -> tuple[nn.Module, Any]:
        assert not trust_remote_code
        assert output_loading_info
        return Net(), {"missing_keys": set(cls.lacking)}

    @classmethod
    def from_config(cls, config: Config, *, trust_remote_code: bool) -> nn.Module:
        assert not trust_remote_code
        return nn.Linear(2, getattr(config, "num_labels", 3))


class Processor:
    stated: dict[str, Any] | None = None

    @classmethod
    def get_image_processor_dict(cls, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        if cls.stated is None:
            raise OSError("no such file")
        return cls.stated, {}


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    package, base = types.ModuleType("transformers"), types.ModuleType("transformers.image_processing_base")
    package.AutoConfig = AutoConfig  # type: ignore[attr-defined]
    for kind, config in (("Image", Config), ("Audio", AudioConfig)):
        setattr(package, f"AutoModelFor{kind}Classification", Auto)
        setattr(package, f"MODEL_FOR_{kind.upper()}_CLASSIFICATION_MAPPING", {config: Net})
    base.ImageProcessingMixin = Processor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setitem(sys.modules, "transformers.image_processing_base", base)


PROCESSORS = {
    "none": (None, {}, "names no normalisation"),
    "channels": ({"image_mean": [0.5, 0.4], "image_std": [1, 2]}, {"mean": [0.5, 0.4], "std": [1.0, 2.0]}, "own image"),
    "number": ({"image_mean": 0.5, "image_std": 0.25}, {"mean": [0.5], "std": [0.25]}, "own image processor"),
    "off": ({"image_mean": [0.5], "image_std": [1], "do_normalize": False}, {}, "names no normalisation"),
}


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize(("stated", "metadata", "note"), PROCESSORS.values(), ids=PROCESSORS.keys())
def test_hf_takes_the_normalisation_of_the_processor(
    stated: dict[str, Any] | None, metadata: dict[str, Any], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processor, "stated", stated)
    loaded = load_model("hf:some/model")
    assert isinstance(loaded.module, Net)
    assert (loaded.format, loaded.metadata, loaded.trusted_code) == ("hf", metadata, ("package transformers",))
    assert note in loaded.notes[0]


@pytest.mark.usefixtures("transformers")
def test_hf_refuses_what_cannot_be_had_or_was_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"is not available .OSError: not here.; check the name"):
        load_model("hf:other/model")
    monkeypatch.setattr(Auto, "lacking", ("classifier.weight",))
    with pytest.raises(InputError, match=r"1 of its weights are not in the file \(classifier\.weight\)"):
        load_model("hf:some/model")


@pytest.mark.usefixtures("transformers")
def test_hf_takes_classifiers_of_audio_and_refuses_readers_of_text() -> None:
    assert "feature extractor" in load_model("hf:some/audio").notes[0]
    with pytest.raises(InputError, match=r"hf:some/text is a reader, of which transformers has no classifier"):
        load_model("hf:some/text")


@pytest.mark.usefixtures("transformers")
def test_an_architecture_from_the_configuration_of_a_model_of_the_hub() -> None:
    built = arch.build("hf:some/model(num_labels=4)")
    assert isinstance(built, nn.Linear)
    assert built.out_features == 4
    assert arch.trusted_code("hf:some/model") == ("--arch hf:some/model",)
    with pytest.raises(InputError, match=r"hf:other/model cannot be built .OSError: not here."):
        arch.build("hf:other/model")
    with pytest.raises(UsageError, match="is not an architecture"):
        arch.build("hf:some/model(num_labels=")


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_hf_with_a_model_on_this_machine(tmp_path: Path) -> None:
    ready_torchvision()
    from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=10
    )
    torch.manual_seed(0)
    model = ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "net")
    ResNetModel(config).save_pretrained(tmp_path / "headless")
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.25]}))
    loaded = load_model(f"hf:{tmp_path / 'net'}")
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(loaded.module(x).logits, model(x).logits)  # type: ignore[attr-defined]
    assert loaded.metadata == {"mean": [0.5], "std": [0.25]}
    with pytest.raises(InputError, match="not a trained classifier"):
        load_model(f"hf:{tmp_path / 'headless'}")
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "l.ckpt"
    )
    trained = load_model(str(tmp_path / "l.ckpt"), arch=f"hf:{tmp_path / 'net'}")
    assert torch.equal(trained.module(x).logits, model(x).logits)  # type: ignore[attr-defined]


class Data(enum.Enum):
    CIFAR = "cifar10"


class Threat(enum.Enum):
    LINF, L2 = "Linf", "L2"


@pytest.fixture
def robustbench(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The package with three names; returns what was asked of it."""
    asked: list[dict[str, str]] = []

    def load(**names: str) -> nn.Module:
        asked.append(names)
        return Net()

    package, utils, zoo = (types.ModuleType(f"robustbench{end}") for end in ("", ".utils", ".model_zoo"))
    utils.load_model = load  # type: ignore[attr-defined]
    zoo.model_dicts = {Data.CIFAR: {Threat.LINF: {"A": 1, "Both": 1}, Threat.L2: {"B": 1, "Both": 1}}}  # type: ignore[attr-defined]
    for module in (package, utils, zoo):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


ASKED = {
    "A": ("A", "Linf", 8 / 255),
    "B": ("B", "L2", 0.5),
    "Both": ("Both", "Linf", 8 / 255),
    "cifar10/L2/Both": ("Both", "L2", 0.5),
}


@pytest.mark.parametrize(("name", "expected"), ASKED.items())
def test_robustbench_brings_its_threat_model(
    name: str, expected: tuple[str, str, float], robustbench: list[dict[str, str]]
) -> None:
    short, norm, eps = expected
    loaded = load_model(f"robustbench:{name}")
    assert robustbench == [{"model_name": short, "dataset": "cifar10", "threat_model": norm}]
    assert loaded.metadata == {
        "threat": {"norm": norm, "eps": eps, "bounds": [0, 1]}, "data": "torchvision:CIFAR10"
    }  # fmt: skip
    assert loaded.trusted_code == ("package robustbench",)


WRONG = {
    "unknown": ("C", "no model 'C' under cifar10/Linf or cifar10/L2; it has cifar10/L2, cifar10/Linf"),
    "elsewhere": ("cifar10/Linf/B", "no model 'B' under cifar10/Linf"),
    "form": ("cifar10/A", "write robustbench:NAME or robustbench:cifar10/Linf/NAME"),
}


@pytest.mark.usefixtures("robustbench")
@pytest.mark.parametrize(("name", "words"), WRONG.values(), ids=WRONG.keys())
def test_robustbench_names_that_are_wrong(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_model(f"robustbench:{name}")
