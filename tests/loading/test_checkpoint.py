"""Our checkpoints: what is written is what is read, completely or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from maskaudit.errors import InputError, UsageError
from maskaudit.loading import read_metadata, save_checkpoint
from maskaudit.sources import load_model

METADATA = {"arch": "line", "threat": {"norm": "Linf", "eps": 0.2, "bounds": [0, 1]}, "method": "great — β"}


class Tied(nn.Module):
    """Shares one weight under two names, holds a transposed view, a scalar, an empty and a bool buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("none", torch.zeros(0))
        self.register_buffer("mask", torch.tensor([True, False]))


def test_round_trip(tmp_path: Path) -> None:
    module, path = Tied(), tmp_path / "m.safetensors"
    save_checkpoint(path, module, METADATA)
    stored = safetensors.torch.load_file(path)
    expected = module.state_dict()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], value) for name, value in expected.items())
    assert read_metadata(path) == METADATA
    loaded = load_model(str(path), arch=f"{__name__}:Tied")
    assert isinstance(loaded.module, Tied)
    assert torch.equal(loaded.module.turned, module.turned)
    assert loaded.module.a.weight is loaded.module.b.weight


def test_same_module_same_bytes(tmp_path: Path) -> None:
    module = Tied()
    save_checkpoint(tmp_path / "a", module, METADATA)
    save_checkpoint(tmp_path / "b", module, dict(reversed(METADATA.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, nn.Linear(2, 2), {"epochs": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(path, nn.Linear(2, 2), {"epochs": 2})
    assert read_metadata(path) == {"epochs": 1}
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_link_is_written_through(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    save_checkpoint(real, nn.Linear(2, 2), {"epochs": 1})
    link.symlink_to(real)
    save_checkpoint(link, nn.Linear(2, 2), {"epochs": 2})
    assert link.is_symlink()
    assert read_metadata(real) == {"epochs": 2}


def test_unwritable(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "such" / "m", tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            save_checkpoint(path, nn.Linear(2, 2), {})


@pytest.mark.parametrize("metadata", [{"a": torch.zeros(2)}, {"a": float("nan")}, {("a",): 1}])
def test_metadata_must_be_json(tmp_path: Path, metadata: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="plain JSON"):
        save_checkpoint(tmp_path / "m", nn.Linear(2, 2), metadata)
    assert os.listdir(tmp_path) == []


def craft(header: bytes, claimed: int | None = None) -> bytes:
    return (len(header) if claimed is None else claimed).to_bytes(8, "little") + header


def with_text(text: object) -> bytes:
    return craft(json.dumps({"__metadata__": {"maskaudit": text}}).encode())


BAD_HEADERS = {
    "empty": b"",
    "short": b"\x01\x00",
    "huge claim": craft(b"{}", 2**63),
    "claim of 99 MB": craft(b"{}", 99_000_000),
    "not JSON": craft(b"{'a'"),
    "not UTF-8": craft(b"{\xff\xfe}"),
    "list": craft(b"[]"),
    "deep": craft(b'{"a":' + b"[" * 200_000),
    "inner not JSON": with_text("{"),
    "inner list": with_text("[1]"),
    "inner number": with_text(3),
}


@pytest.mark.parametrize("content", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_bad_headers(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.safetensors"):
        read_metadata(path)
    with pytest.raises(InputError, match=r"m\.safetensors"):
        load_model(str(path))


def test_foreign_safetensors_say_nothing(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "a", metadata={"format": "pt"})
    assert read_metadata(tmp_path / "a") == {}
    with pytest.raises(InputError, match="no file"):
        read_metadata(tmp_path / "gone")
