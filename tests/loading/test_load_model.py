"""`load_model`: every format, what it refuses, and that nothing runs without the user's word."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import nn

from maskaudit.errors import InputError, UntrustedInputError, UsageError
from maskaudit.loading import save_checkpoint
from maskaudit.sources import load_model

from .nets import ARCH, Net, X, legacy, plain_pickle, script


def compiled_names(module: nn.Module) -> dict[str, Any]:
    return {f"module._orig_mod.{name}": value for name, value in module.state_dict().items()}


STATE_FILES: dict[str, tuple[Callable[[Net, Path], object], str, str]] = {
    "safetensors": (lambda net, path: safetensors.torch.save_file(net.state_dict(), path), "safetensors", ""),
    "state dict": (lambda net, path: torch.save(net.state_dict(), path), "state_dict", ""),
    "legacy state dict": (lambda net, path: legacy(net.state_dict(), path), "state_dict", ""),
    "wrapped": (lambda net, path: torch.save({"epoch": 3, "net": net.state_dict()}, path), "state_dict", "net"),
    "wrapped twice": (
        lambda net, path: torch.save({"model": {"state_dict": net.state_dict(), "t": 1}}, path),
        "state_dict",
        "model/state_dict",
    ),
    "prefixed": (lambda net, path: torch.save(compiled_names(net), path), "state_dict", "module._orig_mod."),
    "double": (lambda net, path: torch.save(net.double().state_dict(), path), "state_dict", "float64 to float32"),
    "parameter dict": (lambda net, path: torch.save(dict(net.state_dict(keep_vars=True)), path), "state_dict", ""),
}


@pytest.mark.parametrize(("write", "form", "note"), STATE_FILES.values(), ids=STATE_FILES.keys())
def test_weights_with_arch(
    net: Net, tmp_path: Path, write: Callable[[Net, Path], object], form: str, note: str
) -> None:
    expected = net(X)
    path = tmp_path / "model.bin"  # the suffix says nothing
    write(net, path)
    before = torch.get_rng_state()
    loaded = load_model(str(path), arch=ARCH)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.format == form
    assert not loaded.module.training  # type: ignore[union-attr]
    assert torch.allclose(loaded.module(X), expected, atol=1e-6)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert loaded.trusted_code == (f"--arch {ARCH}",)
    assert note in " ".join(loaded.notes)
    assert bool(note) == bool(loaded.notes)


@pytest.mark.parametrize("form", ["safetensors", "state dict", "legacy state dict"])
def test_weights_without_arch_show_the_command(net: Net, tmp_path: Path, form: str) -> None:
    path = tmp_path / "my model.pt"
    STATE_FILES[form][0](net, path)
    with pytest.raises(InputError, match="is a state dict: say which module") as caught:
        load_model(str(path))
    assert f"maskaudit check '{path}' --arch net.py:make_net" in str(caught.value)


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (lambda state: state.pop("head.bias"), r"missing head\.bias"),
    "unexpected": (lambda state: state.update(extra=torch.zeros(1)), "unexpected extra"),
    "shape": (lambda state: state.update({"head.bias": torch.zeros(9)}), r"head\.bias \(9,\) instead of \(3,\)"),
    "other net": (lambda state: (state.clear(), state.update(a=torch.zeros(1))), "missing .* and 5 more; unexpected a"),
}


@pytest.mark.parametrize("as_safetensors", [False, True])
@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_weights_that_do_not_fit(
    net: Net, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str, as_safetensors: bool
) -> None:
    state, path = dict(net.state_dict()), tmp_path / "m"
    change(state)
    (safetensors.torch.save_file if as_safetensors else torch.save)(state, path)
    with pytest.raises(InputError, match=message):
        load_model(str(path), arch=ARCH)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {}, {"loss": 1.0, "epoch": 3}, {"model": {"a": 1}}, 5])
def test_checkpoints_without_a_model(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(InputError, match="no state dict"):
        load_model(str(tmp_path / "m.pt"), arch=ARCH)


@pytest.fixture
def builtin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the built-in architectures that knows one name."""

    def build(spec: str) -> nn.Module:
        if spec != "net(width=5)":
            raise UsageError(f"There is no built-in architecture {spec!r}.")
        return Net(5)

    monkeypatch.setattr("maskaudit.networks.registry.build", build)


@pytest.mark.usefixtures("builtin")
def test_own_checkpoint_needs_no_option(net: Net, tmp_path: Path) -> None:
    metadata = {"arch": "net(width=5)", "data": "digits", "threat": {"norm": "Linf", "eps": 0.2, "bounds": [0, 1]}}
    path = tmp_path / "great.pt"
    save_checkpoint(path, net, metadata)
    loaded = load_model(str(path))
    assert torch.equal(loaded.module(X), net(X))
    assert loaded.metadata == metadata
    assert (loaded.trusted_code, loaded.notes) == ((), ())
    replaced = load_model(str(path), arch=ARCH)
    assert "in place of the architecture that the file names" in " ".join(replaced.notes)


@pytest.mark.usefixtures("builtin")
@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("os:system", "not run"),
        ("other", "does not have"),
        (3, "must be a text"),
        (None, "is a state dict"),
        ("", "must be a text of 1"),
    ],
)
def test_own_checkpoint_with_a_bad_name(net: Net, tmp_path: Path, named: object, message: str) -> None:
    save_file(net.state_dict(), tmp_path / "m", metadata={"maskaudit": json.dumps({"arch": named})})
    with pytest.raises(InputError, match=message):
        load_model(str(tmp_path / "m"))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.filterwarnings("error")
def test_torchscript(net: Net, tmp_path: Path, training: bool) -> None:
    expected = net(X)
    path = tmp_path / "model"
    script(net.train(training), path)
    loaded = load_model(str(path))
    assert loaded.format == "torchscript"
    assert torch.allclose(loaded.module(X), expected, atol=1e-6)
    assert loaded.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert "gradients of the converted model" in loaded.notes[0]
    assert ("training mode" in " ".join(loaded.notes)) == training
    assert loaded.trusted_code == ("TorchScript archive",)
    assert "not used" in " ".join(load_model(str(path), arch=ARCH).notes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_frozen_torchscript(net: Net, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.freeze(torch.jit.script(net)), tmp_path / "m")
    assert torch.allclose(load_model(str(tmp_path / "m")).module(X), net(X), atol=1e-6)


WRITERS: dict[str, Callable[[Net, Path], object]] = {
    "safetensors": STATE_FILES["safetensors"][0],
    "state dict": STATE_FILES["state dict"][0],
    "legacy": STATE_FILES["legacy state dict"][0],
    "torchscript": script,
    "plain pickle": plain_pickle,
}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("cut", [1, 3, 9, 40, 200, 0.5, 0.9, -1])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_truncated(net: Net, tmp_path: Path, write: Callable[[Net, Path], object], cut: float, trust: bool) -> None:
    path = tmp_path / "model.pt"
    write(net, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) if isinstance(cut, float) else cut])
    with pytest.raises(InputError, match=r"model\.pt") as caught:
        load_model(str(path), arch=ARCH, trust_pickle=trust)
    if write is not plain_pickle:
        assert not isinstance(caught.value, UntrustedInputError), "a damaged file is not a malicious one"


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_damaged_bytes_never_crash(net: Net, tmp_path: Path, write: Callable[[Net, Path], object]) -> None:
    path = tmp_path / "model.pt"
    write(net, path)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(content)
        for place in generator.integers(len(content), size=8):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        messages = []
        try:
            load_model(str(path), arch=ARCH)
        except InputError as error:
            messages.append(str(error))
        assert all(message.isprintable() for message in messages)


def test_damaged_torchscript_does_not_abort(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    script(net, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        weights = next(item for item in archive.infolist() if item.filename.endswith("data/0"))
    content[weights.header_offset + 80] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load_model(str(path))


OTHERS: dict[str, tuple[Callable[[Net, Path], object], str]] = {
    "onnx": (lambda net, path: path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.0.0:\x10"), "ONNX"),
    "npz": (lambda net, path: np.savez(path.open("wb"), x=np.zeros(3)), "--data"),
    "zero bytes": (lambda net, path: path.write_bytes(b""), "is empty"),
    "text": (lambda net, path: path.write_text("import torch"), "not a model format"),
    "folder": (lambda net, path: path.mkdir(), "is a folder"),
    "missing": (lambda net, path: None, "no model file"),
    "pipe": (lambda net, path: os.mkfifo(path), "not a regular file"),
}


@pytest.mark.parametrize(("write", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_other_files(net: Net, tmp_path: Path, write: Callable[[Net, Path], object], message: str) -> None:
    write(net, tmp_path / "model")
    with pytest.raises(InputError, match=message):
        load_model(str(tmp_path / "model"))


def test_zip_bomb(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("m/data.pkl", "w") as out,
    ):
        for _ in range(300):
            out.write(bytes(2**20))
    with pytest.raises(InputError, match="many times its size"):
        load_model(str(tmp_path / "m.pt"))


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_device(net: Net, tmp_path: Path, device: str) -> None:
    torch.save(net.state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match="--device cpu"):
        load_model(str(tmp_path / "m.pt"), arch=ARCH, device=device)


class Awkward(nn.Module):
    """Cannot be asked for its parts."""

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("no parts")


class Unmoved(nn.Module):
    """Cannot change its mode."""

    def train(self, mode: bool = True) -> Any:
        raise RuntimeError("no modes")


@pytest.mark.parametrize(("factory", "says"), [(Awkward, "no parts"), (Unmoved, "no modes")])
def test_a_module_whose_methods_fail_is_refused_in_one_sentence(factory: type[nn.Module], says: str) -> None:
    with pytest.raises(InputError, match=f"cannot be prepared for an audit: .*{says}"):
        load_model(f"py:{__name__}:{factory.__name__}")
