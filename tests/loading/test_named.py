"""Models that are named: `py:`, `zoo:`, `timm:`, `torchvision:`; see also test_hubs."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest
import torch
from torch import nn

from maskaudit.errors import InputError, UsageError
from maskaudit.loading import LoadedModel
from maskaudit.loading.interface import state_digest
from maskaudit.sources import load_model

from . import nets
from .nets import ARCH, Net, X


def test_py_source(net: Net) -> None:
    loaded = load_model(f"py:{nets.__name__}:make(width=7)")
    assert isinstance(loaded.module, Net)
    assert (loaded.format, loaded.trusted_code) == ("python", (f"py:{nets.__name__}:make(width=7)",))
    assert not loaded.module.training
    assert len(loaded.sha256) == 64
    plain = load_model(f"py:{nets.__name__}:plain")
    assert torch.equal(plain.module(X), X * 2)
    assert (plain.parameters, plain.sha256) == (0, "")


def test_state_digest_follows_the_weights() -> None:
    net, other = Net(), Net()
    other.load_state_dict(net.state_dict())
    assert state_digest(net) == state_digest(other)
    other.norm.running_mean[0] += 1e-6
    assert state_digest(net) != state_digest(other)


NAMED = {
    "py returns nothing": (f"py:{nets.__name__}:nothing", InputError, "type NoneType"),
    "py built-in": ("py:small_cnn", UsageError, "must name code"),
    "py missing": ("py:no_such_package_here:make", InputError, "cannot be imported"),
    "no name": ("timm:", UsageError, "names no model"),
    "timm": ("timm:resnet18", InputError, "needs the package timm"),
    "torchvision": ("torchvision:resnet18", InputError, "needs the package torchvision"),
    "hf": ("hf:some/model", InputError, "needs the package transformers"),
    "robustbench": ("robustbench:Carmon2019", InputError, "needs the package robustbench"),
}


@pytest.mark.parametrize(("source", "error", "message"), NAMED.values(), ids=NAMED.keys())
def test_named_refused(monkeypatch: pytest.MonkeyPatch, source: str, error: type[Exception], message: str) -> None:
    for package in ("timm", "torchvision", "torchvision.models", "transformers", "robustbench"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(error, match=message):
        load_model(source)


def test_named_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, pretrained: bool) -> nn.Module:
        if name != "net" or not pretrained:
            raise RuntimeError("Unknown model")
        return Net()

    stub = types.ModuleType("timm")
    stub.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", stub)
    assert load_model("timm:net").trusted_code == ("package timm",)
    with pytest.raises(InputError, match="RuntimeError: Unknown model"):
        load_model("timm:gone")


def test_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    found = LoadedModel(Net(), "quantised", "zoo", "0" * 64, 1, {"truth": "masked"})
    monkeypatch.setattr("maskaudit.zoo.load", lambda name: dataclasses.replace(found, source=name))
    loaded = load_model("zoo:quantised")
    assert (loaded.source, loaded.metadata) == ("zoo:quantised", {"truth": "masked"})
    with pytest.raises(UsageError, match="leave it out"):
        load_model("zoo:quantised", arch=ARCH)
