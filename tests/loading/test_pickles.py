"""Pickles: nothing runs without the user's word."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maskaudit.errors import InputError, UntrustedInputError
from maskaudit.sources import load_model

from . import nets
from .nets import ARCH, Net, X, legacy, plain_pickle


class Malice:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


PICKLES = {"torch.save": torch.save, "legacy": legacy, "plain pickle": plain_pickle}


@pytest.mark.parametrize("write", PICKLES.values(), ids=PICKLES.keys())
@pytest.mark.parametrize("arch", [None, ARCH])
def test_malicious_pickle_is_not_run(tmp_path: Path, write: Callable[[object, Path], None], arch: str | None) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    write({"state_dict": {"w": torch.zeros(2)}, "extra": Malice(marker)}, path)
    with pytest.raises(UntrustedInputError, match=r"posix\.mkdir.*--trust-pickle") as caught:
        load_model(str(path), arch=arch)
    assert caught.value.exit_code == 2
    assert not marker.exists()
    with pytest.raises(InputError):
        load_model(str(path), trust_pickle=True)
    assert marker.exists(), "the file above must have been able to do harm, or this test shows nothing"


@pytest.mark.parametrize(("version", "read"), [("2.5.1+cpu", False), ("2.6.0", True), ("2.13.0+cpu", True)])
def test_a_torch_whose_safe_loader_could_be_tricked_is_refused(
    version: str, read: bool, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    with contextlib.nullcontext() if read else pytest.raises(InputError, match="CVE-2025-32434"):
        load_model(str(tmp_path / "w.pt"), arch=ARCH)


@pytest.mark.parametrize("write", PICKLES.values(), ids=PICKLES.keys())
@pytest.mark.parametrize("wrapped", [False, True])
def test_pickled_module(net: Net, tmp_path: Path, write: Callable[[object, Path], None], wrapped: bool) -> None:
    path = tmp_path / "model.pt"
    write({"model": net, "epoch": 2} if wrapped else net, path)
    with pytest.raises(UntrustedInputError, match=r"Net"):
        load_model(str(path))
    loaded = load_model(str(path), trust_pickle=True)
    assert loaded.format == "pickle"
    assert torch.equal(loaded.module(X), net(X))
    assert "Net" in loaded.trusted_code[0]


def test_pickle_modes_on_parts_are_kept(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    net.norm.train()
    torch.save(net, path)
    loaded = load_model(str(path), trust_pickle=True)
    assert loaded.module.norm.training  # type: ignore[union-attr]
    torch.save(net.train(), path)
    loaded = load_model(str(path), trust_pickle=True)
    assert not any(module.training for module in loaded.module.modules())  # type: ignore[union-attr]
    assert "saved in training mode" in " ".join(loaded.notes)


def test_pickle_of_code_that_is_not_here(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(net, tmp_path / "m.pt")
    monkeypatch.delattr(nets, "Net")
    with pytest.raises(InputError, match="needs code that cannot be imported here"):
        load_model(str(tmp_path / "m.pt"), trust_pickle=True)


def test_trusting_does_not_make_safe_files_run(net: Net, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "m.pt")
    assert load_model(str(tmp_path / "m.pt"), arch=ARCH, trust_pickle=True).trusted_code == (f"--arch {ARCH}",)
