"""A real Ray cluster of three nodes on this machine; a stand-in for it is in `test_engine`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.kills import differences
from maskaudit import api
from maskaudit.data import Dataset
from maskaudit.gate.config import read_config
from maskaudit.gate.running import run_gate
from maskaudit.results import without_run_fields
from maskaudit.settings import AuditSettings
from maskaudit.threat import ThreatModel

pytestmark = pytest.mark.heavy

ray = pytest.importorskip("ray", reason="the package ray is not installed: pip install 'maskaudit[ray]'")

#: A node that is gone is noticed within a second or two.
SYSTEM = {"health_check_period_ms": 200, "health_check_timeout_ms": 500, "health_check_failure_threshold": 3}
STORE = 80 * 2**20
SELECT = ("zero-gradient", "pgd", "noise", "square")


class Doomed(nn.Module):
    """A linear model on rounded inputs; on the node whose id is in a file it says so, and never answers, or stops.

    Once the file is there it prints much.
    """

    def __init__(self, folder: Path, *, stops: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.folder, self.stops = nn.Linear(6, 3), str(folder), stops

    def forward(self, x: Tensor) -> Tensor:
        doomed = os.path.join(self.folder, "doomed")
        if os.path.exists(doomed) and ray.is_initialized():
            print("word " * 10_000)
            with open(doomed) as file:
                if file.read() == ray.get_runtime_context().get_node_id():
                    with open(os.path.join(self.folder, f"reached {os.getpid()}"), "w"):
                        pass
                    if self.stops:
                        os.kill(os.getpid(), signal.SIGSTOP)
                    time.sleep(600)
        scores: Tensor = self.head((x * 16).round() / 16)
        return scores


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head and another node, with one CPU each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        head = {"num_cpus": 1, "object_store_memory": STORE, "_system_config": SYSTEM, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


def audited(model: nn.Module, **settings: Any) -> dict[str, Any]:
    x = torch.rand(24, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        data = Dataset("in memory", x, model(x).argmax(1), 3, (0.0, 1.0), split="all")
    chosen = AuditSettings(budget="quick", samples=24, select=SELECT, **settings)
    prepared = api.Prepared(api.in_memory(model), data, ThreatModel("Linf", 0.1, (0.0, 1.0)), chosen, x, ())
    return api.run(prepared).report.to_dict()


def stop_raylet(node: Any) -> None:
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGSTOP)


#: What befalls a node that is at work, and whether the model stops its worker there.
FATES: dict[str, tuple[Callable[[Any, Any], object], bool]] = {
    "node lost": (lambda cluster, node: cluster.remove_node(node, allow_graceful=False), False),
    "node stopped": (lambda cluster, node: stop_raylet(node), False),
    "worker stopped": (lambda cluster, node: None, True),
}


@pytest.mark.parametrize(("befalls", "stops"), FATES.values(), ids=FATES)
def test_a_cluster_that_loses_a_node_gives_what_one_process_gives(
    befalls: Callable[[Any, Any], object], stops: bool, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskaudit.auditing.engine.interface.MOST_SHARD", 8)
    monkeypatch.setattr("maskaudit.auditing.engine.interface.LEAST_SHARD", 8)
    model = Doomed(tmp_path, stops=stops)
    alone = audited(model)
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cluster.wait_for_nodes()

    def watch() -> None:
        while not list(tmp_path.glob("reached *")):
            time.sleep(0.05)
        befalls(cluster, node)

    watcher = threading.Thread(target=watch, daemon=True)
    (tmp_path / "doomed").write_text(node.node_id)
    watcher.start()
    afar = audited(model, ray=cluster.address, call_timeout=20.0)
    watcher.join(60)
    assert list(tmp_path.glob("reached *")), "the node was lost with work on it"
    assert not ray.is_initialized()
    written = b"".join(path.read_bytes() for path in Path(node.get_logs_dir_path()).glob("worker-*"))
    assert b"word word" not in written, "what a model prints on a node goes nowhere"
    assert list(differences(without_run_fields(afar), without_run_fields(alone))) == []
    assert {row["name"] for row in afar["attacks"] if row["status"] == "ran"} >= {"pgd", "noise", "square"}
    if node in cluster.worker_nodes:
        (tmp_path / "doomed").unlink()
        cluster.remove_node(node, allow_graceful=False)


def test_the_models_of_a_gate_are_tasks(cluster: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(6, 3), torch.rand(24, 6)
    torch.jit.save(torch.jit.script(net), tmp_path / "scripted.pt")  # type: ignore[no-untyped-call]
    (tmp_path / "code.py").write_text("import torch\n\ndef make():\n    return torch.nn.Linear(6, 3)\n")
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    np.savez(tmp_path / "points.npz", x=x, y=net(x).argmax(1))
    common = 'data = "points.npz"\neps = 0.1\nbudget = "quick"\nselect = ["pgd", "noise"]\n'
    models = ('model = "scripted.pt"', 'model = "weights.pt"\narch = "code.py:make"', 'model = "missing.pt"')
    tables = "\n".join(f"[[models]]\n{model}\n" for model in models)
    (tmp_path / "maskaudit.toml").write_text(common + tables)
    config = read_config(tmp_path / "maskaudit.toml")
    afar, alone = run_gate(config, ray=cluster.address), run_gate(config)
    assert [outcome.error for outcome in afar.outcomes] == [outcome.error for outcome in alone.outcomes]
    assert [outcome.status for outcome in afar.outcomes] == [outcome.status for outcome in alone.outcomes]
    for one, other in zip(afar.outcomes, alone.outcomes, strict=True):
        assert list(differences(without_run_fields(one.document), without_run_fields(other.document))) == []
    assert afar.outcomes[0].document is not None
    assert not ray.is_initialized()
