"""torchvision beside a torch that it was not built for: with a stand-in, and with itself where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from maskaudit.loading import arch
from maskaudit.loading.vision import ready_torchvision

FAKE = "from torchvision import _meta_registrations, models"
#: As torchvision does, but with an operator of our own, so that the real package is not disturbed.
DESCRIBED = """
import torch
@torch.library.register_fake("torchvision::{name}")
def described(boxes, scores, threshold):
    return scores
"""


def package(folder: Path, name: str, init: str = FAKE) -> None:
    """A torchvision whose own library did not load."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(init)
    (folder / "torchvision" / "models.py").write_text("made = 1")
    (folder / "torchvision" / "_meta_registrations.py").write_text(DESCRIBED.format(name=name))


def held() -> dict[str, types.ModuleType]:
    """Modules of torchvision that are imported."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}


@pytest.fixture
def nothing_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder to import from, with nothing of torchvision imported; what was is put back."""
    before = held()
    for name in before:
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in held():
        del sys.modules[name]
    sys.modules.update(before)


def test_missing_operators_are_declared(nothing_imported: Path) -> None:
    package(nothing_imported, "maskaudit_overlap")
    with pytest.raises(RuntimeError, match="torchvision::maskaudit_overlap does not exist"):
        importlib.import_module("torchvision")
    ready_torchvision()
    assert sys.modules["torchvision"].models.made == 1
    with pytest.raises(NotImplementedError, match="maskaudit_overlap"):  # declared, not computed
        torch.ops.torchvision.maskaudit_overlap(torch.ones(1, 4), torch.ones(1), 0.5)


def test_other_failures_are_left_as_they_are(nothing_imported: Path) -> None:
    package(nothing_imported, "maskaudit_other", "raise RuntimeError('compiled for another machine')")
    with pytest.raises(RuntimeError, match="another machine"):
        ready_torchvision()


def test_what_is_there_or_absent_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = types.ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", stub)
    ready_torchvision()
    assert sys.modules["torchvision"] is stub
    monkeypatch.setitem(sys.modules, "torchvision", None)
    ready_torchvision()


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_itself() -> None:
    built = arch.build("torchvision:resnet18(num_classes=10)").eval()
    assert built(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_timm_itself() -> None:
    assert arch.build("timm:test_vit(num_classes=10)").eval()(torch.rand(1, 3, 160, 160)).shape == (1, 10)
