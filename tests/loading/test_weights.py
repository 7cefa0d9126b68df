"""Which weights of a checkpoint are audited: those that fit, wherever they lie, and whose others are named.

`files/timm.pth.tar` was written by timm's CheckpointSaver with ModelEmaV3, `files/lightning.ckpt` by Lightning's
Trainer for a module with a model, a teacher and a weighted loss, each around `nets.Net`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from maskaudit.errors import InputError, UsageError
from maskaudit.loading import LoadedModel
from maskaudit.sources import load_model

from .nets import ARCH, Net, X

FILES = Path(__file__).with_name("files")


def other() -> Net:
    torch.manual_seed(11)
    return Net().eval()


def under(prefix: str, module: nn.Module) -> dict[str, Any]:
    return {prefix + name: value for name, value in module.state_dict().items()}


def averaged(net: nn.Module) -> dict[str, Any]:
    return dict(AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True).state_dict())


LOSS = {"criterion.weight": torch.ones(3), "loss_fn.scale": torch.ones(1)}
#: What a checkpoint holds: made from the net and one with other weights; which is audited, and what is notes of it.
CHECKPOINTS: dict[str, tuple[Callable[[Net, Net], Any], str]] = {
    "loss beside": (lambda net, _: {**net.state_dict(), **LOSS}, "not used: criterion.weight, loss_fn.scale"),
    "any prefix": (lambda net, _: under("classifier.", net), "'classifier.'"),
    "two prefixes": (lambda net, _: under("student.encoder.", net), "'student.encoder.'"),
    "teacher": (lambda net, o: {**under("model.", net), **under("teacher.", o)}, "takes teacher in its place"),
    "teacher first": (lambda net, o: {**under("a_teacher.", o), **under("z.", net), **LOSS}, "takes a_teacher in its"),
    "average beside": (lambda net, o: {"model": o.state_dict(), "model_ema": net.state_dict()}, "'model_ema' are an"),
    "average alone": (lambda net, _: {"model_ema": net.state_dict(), "epoch": 3}, "under model_ema"),
    "average inside": (lambda net, o: {**under("ema_model.", net), **under("online_model.", o)}, "takes online_model"),
    "bare beside average": (lambda net, o: {**o.state_dict(), **under("ema.", net)}, "takes top in its place"),
    "torch's average": (lambda net, _: averaged(net), "not used: n_averaged"),
    "torch's average beside": (
        lambda net, o: {"net": o.state_dict(), "swa": averaged(net)},
        "'swa/module' is audited; --weights takes net in its place",
    ),
    "Lightning's average": (
        lambda net, o: {
            "state_dict": under("net.", net), "current_model_state": under("net.", o),
            "averaging_state": {"n_averaged": torch.tensor(3)},
        },
        "takes current_model_state/net in its place",
    ),
    "list of averages": (
        lambda net, o: {
            "net": {**o.state_dict(), **dict(net.named_buffers())},
            "ema": {"decay": 0.9, "shadow_params": [one.detach() for one in net.parameters()]},
        },
        "'ema/shadow_params' are an average over training",
    ),
    "nested deeply": (lambda net, _: {"run": {"best": {"model": {"sd": net.state_dict()}}}}, "run/best/model/sd"),
    "list": (lambda net, _: {"state_dict": [net.state_dict()], "err": (), "epoch": 3}, "under state_dict/0"),
    "ensemble": (lambda net, o: [net.state_dict(), o.state_dict()], "--weights takes 1 in its place"),
    "parallel": (lambda net, _: nn.DataParallel(net).state_dict(), "'module.'"),
    "compiled inside": (
        lambda net, _: {name.replace("body.", "body._orig_mod."): value for name, value in net.state_dict().items()},
        "",
    ),
    "optimizer": (
        lambda net, o: {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "teacher": o.state_dict(),
                        "weights": net.state_dict()},
        "takes teacher in its place",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "note"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_the_weights_that_fit_are_found(net: Net, tmp_path: Path, make: Callable[[Net, Net], Any], note: str) -> None:
    torch.save(make(net, other()), tmp_path / "m.pt")
    loaded = load_model(str(tmp_path / "m.pt"), arch=ARCH)
    assert torch.equal(loaded.module(X), net(X))
    assert note in " ".join(loaded.notes)


def test_weights_are_chosen_by_name(net: Net, tmp_path: Path) -> None:
    raw = other()
    torch.save({"state_dict": under("net.", raw), "ema": {"state_dict": under("net.", net)}}, tmp_path / "m.pt")

    def load(weights: str | None) -> LoadedModel:
        return load_model(str(tmp_path / "m.pt"), arch=ARCH, weights=weights)

    assert torch.equal(load(None).module(X), net(X))
    assert torch.equal(load("state_dict/net").module(X), raw(X))
    assert "'state_dict/net' is audited" in " ".join(load("state_dict/net").notes)
    with pytest.raises(UsageError, match=r'no weights "state_dict" that fit .did you mean state_dict/net'):
        load("state_dict")


def test_weights_of_a_module_that_is_wrapped_itself(net: Net, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "m.pt")
    loaded = load_model(str(tmp_path / "m.pt"), arch=f"{__name__}:wrapped")
    assert torch.equal(loaded.module(X), net(X))


def wrapped() -> nn.Module:
    return nn.DataParallel(Net())


class Tied(nn.Module):
    """Two layers that share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.last(self.first(x).relu())
        return scores


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    module = Tied()
    safetensors.torch.save_model(module, str(tmp_path / "m.safetensors"))
    loaded = load_model(str(tmp_path / "m.safetensors"), arch=f"{__name__}:Tied")
    assert torch.equal(loaded.module(X), module(X))


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in Tied().state_dict().items()}
    state["last.weight"] += 1
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"first\.weight and last\.weight are one tensor"):
        load_model(str(tmp_path / "m.pt"), arch=f"{__name__}:Tied")


def test_a_checkpoint_of_timm() -> None:
    notes = " ".join(load_model(str(FILES / "timm.pth.tar"), arch=ARCH).notes)
    assert "'state_dict_ema' are an average over training" in notes
    assert "--weights takes state_dict in its place" in notes
    raw = load_model(str(FILES / "timm.pth.tar"), arch=ARCH, weights="state_dict").module
    held = torch.load(FILES / "timm.pth.tar", weights_only=False)
    assert torch.equal(raw.state_dict()["head.bias"], held["state_dict"]["head.bias"])  # type: ignore[union-attr]
    assert not torch.equal(held["state_dict_ema"]["head.bias"], held["state_dict"]["head.bias"])


def test_a_checkpoint_of_lightning() -> None:
    loaded = load_model(str(FILES / "lightning.ckpt"), arch=ARCH)
    held = torch.load(FILES / "lightning.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(loaded.module.state_dict()["head.bias"], held["model.head.bias"])  # type: ignore[union-attr]
    assert "--weights takes state_dict/teacher in its place" in " ".join(loaded.notes)


def test_leftovers_of_the_network_itself_are_refused(net: Net, tmp_path: Path) -> None:
    torch.save({**under("model.", net), "model.last.weight": torch.ones(3)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"unexpected last\.weight"):
        load_model(str(tmp_path / "m.pt"), arch=ARCH)


def test_an_adapter_that_was_not_merged_is_named(net: Net, tmp_path: Path) -> None:
    state = {
        name.replace("head.", "base_model.model.head.base_layer."): value for name, value in net.state_dict().items()
    }
    torch.save({**state, "base_model.model.head.lora_A.default.weight": torch.ones(2, 3)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"It holds an adapter .* merge it first .merge_and_unload of peft"):
        load_model(str(tmp_path / "m.pt"), arch=ARCH)


def shards(net: nn.Module, folder: Path) -> Path:
    """The layout that transformers and huggingface_hub write."""
    state = net.state_dict()
    halves = {f"model-0000{k + 1}-of-00002.safetensors": list(state)[k::2] for k in range(2)}
    for name, keys in halves.items():
        safetensors.torch.save_file({key: state[key] for key in keys}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: n for n, keys in halves.items() for key in keys}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n")
    return path


def test_shards_with_their_index(net: Net, tmp_path: Path) -> None:
    path = shards(net, tmp_path)
    loaded = load_model(str(path), arch=ARCH)
    assert torch.equal(loaded.module(X), net(X))
    first = loaded.sha256
    with pytest.raises(InputError, match=r"give model\.safetensors\.index\.json"):
        load_model(str(tmp_path / "model-00001-of-00002.safetensors"), arch=ARCH)
    changed = copy.deepcopy(net)
    nn.init.zeros_(changed.head.bias)
    assert load_model(str(shards(changed, tmp_path)), arch=ARCH).sha256 != first


def test_shards_that_huggingface_hub_writes(net: Net, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    hub.save_torch_state_dict(net.state_dict(), tmp_path, max_shard_size=60)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(load_model(str(tmp_path / "model.safetensors.index.json"), arch=ARCH).module(X), net(X))


INDEXES: dict[str, tuple[Any, str]] = {
    "no index": ({"a": 1}, "not an index of weights"),
    "a list": ({"weight_map": [1]}, "weight_map must be an object"),
    "a number": ({"weight_map": {"head.bias": 3}}, "must be a text"),
    "outside": ({"weight_map": {"head.bias": "../m.safetensors"}}, "outside its own folder"),
    "absolute": ({"weight_map": {"head.bias": "/etc/passwd"}}, "outside its own folder"),
    "absent": ({"weight_map": {"head.bias": "m.safetensors"}}, "which is not next to it"),
    "damaged": ({"weight_map": {"head.bias": "broken.safetensors"}}, "safetensors"),
    "not there": ({"weight_map": {"x": "model-00001-of-00002.safetensors"}}, "1 tensors are not in the files"),
}


@pytest.mark.parametrize(("document", "message"), INDEXES.values(), ids=INDEXES.keys())
def test_hostile_indexes(net: Net, tmp_path: Path, document: Any, message: str) -> None:
    path = shards(net, tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        load_model(str(path), arch=ARCH)


def test_weights_only_for_checkpoints() -> None:
    with pytest.raises(UsageError, match="brings its own weights"):
        load_model("zoo:standard", weights="ema")


def test_a_file_with_many_sets_costs_little(tmp_path: Path) -> None:
    torch.save({f"p{k}.weight": torch.zeros(2) for k in range(3000)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"instead of \(3,\)"):
        load_model(str(tmp_path / "m.pt"), arch=f"{__name__}:Scale")


class Scale(nn.Module):
    """One vector."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


VERSIONED = """
from torch import nn

class Net(nn.Linear):
    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            raise ValueError("version should be 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)

def make():
    return nn.Sequential(Net(4, 3))
"""


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_a_module_that_asks_which_version_wrote_its_weights(form: str, tmp_path: Path) -> None:
    """As torchvision's MNASNet does; safetensors keep no version."""
    code, path = tmp_path / "net.py", tmp_path / f"model.{form}"
    code.write_text(VERSIONED)
    weights = {"0.weight": torch.rand(3, 4), "0.bias": torch.rand(3)}
    (torch.save if form == "pt" else safetensors.torch.save_file)(weights, path)
    module = load_model(str(path), arch=f"{code}:make").module
    assert torch.equal(module.state_dict()["0.weight"], weights["0.weight"])  # type: ignore[union-attr]
