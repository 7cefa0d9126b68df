"""Quantised and exported modules in memory, and sharded state dicts: they open, and an audit runs through."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.testing._internal.two_tensor import TwoTensor

from maskaudit.api import audit
from maskaudit.loading.interface import state_digest
from maskaudit.sources import load_model
from maskaudit.target import Target
from maskaudit.trace import trace_model

X = torch.rand(40, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def exported() -> nn.Module:
    return torch.export.export(net(), (X[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()


def dynamic() -> nn.Module:
    module: nn.Module = quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return module


def static() -> nn.Module:
    ready = quantize_fx.prepare_fx(net(), quantization.get_default_qconfig_mapping("x86"), (X[:2],))
    ready(X)
    return quantize_fx.convert_fx(ready)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [exported, dynamic, static])
def test_a_module_whose_mode_or_weights_are_settled(make: Callable[[], nn.Module]) -> None:
    module = make()
    with torch.no_grad():
        y = module(X).argmax(1)
    found = audit(module, (X, y), eps=0.05, budget="quick", samples=20, select=("pgd", "noise")).report.to_dict()
    assert found["accuracy"]["clean"]["value"] == 1.0
    assert {row["status"] for row in found["attacks"] if row["name"] in ("pgd", "noise")} == {"ran"}


def test_a_state_of_tensors_of_another_package_has_no_digest() -> None:
    module = net()
    assert state_digest(module)
    module[0].weight = nn.Parameter(TwoTensor(module[0].weight.data, module[0].weight.data))  # type: ignore[no-untyped-call]
    assert state_digest(module) == ""


def test_a_sharded_state_dict_of_fsdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.distributed.is_available() or torch.distributed.is_initialized():
        pytest.skip("needs a process group of its own")
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))\n"
    )
    store = torch.distributed.FileStore(str(tmp_path / f"store-{os.getpid()}"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
            for kind in (StateDictType.FULL_STATE_DICT, StateDictType.SHARDED_STATE_DICT):
                with FullyShardedDataParallel.state_dict_type(module, kind):
                    torch.save(module.state_dict(), tmp_path / f"{kind.name}.pt")
    finally:
        torch.distributed.destroy_process_group()
    for path in tmp_path.glob("*.pt"):
        opened = load_model(str(path), arch=f"{tmp_path / 'net.py'}:make").module
        scores: Tensor = opened(X)
        assert torch.allclose(scores, net()(X), atol=1e-6)


class OnGrids(nn.Module):
    """What PT2E makes of a network: weights as whole numbers, scales by channel, activations rounded on the way."""

    def __init__(self) -> None:
        super().__init__()
        grid = torch.ops.quantized_decomposed
        weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
        self.scales = nn.Buffer(weight.abs().amax(1) / 127)
        self.zeros = nn.Buffer(torch.zeros(3, dtype=torch.int64))
        found = grid.quantize_per_channel(weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        self.weight = nn.Buffer(found)

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.ops.quantized_decomposed
        h = grid.quantize_per_tensor(x, 1 / 15, 3, 0, 18, torch.uint8)
        h = grid.dequantize_per_tensor(h, 1 / 15, 3, 0, 18, torch.uint8)
        w = grid.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        return torch.nn.functional.linear(h, w)


def test_pt2e_opens_as_it_was_exported_and_its_rounding_is_located(tmp_path: Path) -> None:
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    module = OnGrids().eval()
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    torch.export.save(torch.export.export(module, (X[:3],), dynamic_shapes=shapes), tmp_path / "grids.pt2")
    opened = load_model(str(tmp_path / "grids.pt2")).module
    scores: Tensor = opened(X)
    assert torch.allclose(scores, module(X), atol=1e-6)
    with Target(opened, bounds=(0.0, 1.0)) as target:
        found = trace_model(target, X, target.predict(target.scores(X)))
    assert found.culprits[0].location.op == "round"


SAVED_IN_PARTS = """
import sys, torch
from torch.distributed.tensor import distribute_tensor, init_device_mesh, Shard
store = torch.distributed.FileStore(sys.argv[1] + ".store", 1)
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
weight = distribute_tensor(torch.rand(3, 8), init_device_mesh("cpu", (1,)), [Shard(0)])
torch.save({"weight": weight}, sys.argv[1])
"""


@pytest.mark.heavy
def test_weights_saved_in_parts_are_refused_with_the_remedy(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without it")
    path = str(tmp_path / "part.pt")
    subprocess.run([sys.executable, "-c", SAVED_IN_PARTS, path], check=True, timeout=300, capture_output=True)
    asked = [sys.executable, "-m", "maskaudit", "inspect", path, "--arch", "torch.nn:Identity"]
    done = subprocess.run(asked, check=False, timeout=300, capture_output=True, text=True)
    assert done.returncode == 2
    assert "full_state_dict=True" in " ".join(done.stderr.split())
