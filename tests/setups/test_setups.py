"""Twelve typical set-ups (docs/models.md): files made by the real tools, each brought to a verdict as it is.

`make.py` made the files of `files/`. What a tool has to be there for is skipped without it.
"""

from __future__ import annotations

import http.server
import importlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from maskaudit import api
from maskaudit.auditing.runner import Audit
from maskaudit.settings import AuditSettings

from . import make, nets

pytestmark = pytest.mark.heavy

FILES = make.FILES
NETS = f"{nets.__name__}:"
FEATURES = """
[[feature]]
column = "age"
kind = "integer"
bounds = [18, 100]
[[feature]]
column = "pressure"
bounds = [60, 220]
[[feature]]
columns = ["glucose"]
bounds = [40, 260]
[[feature]]
columns = ["smoker", "ward"]
kind = "frozen"
"""


def audited(model: str, samples: int = 25, **request: Any) -> Audit:
    """A small audit of a model that is given as a person would give it."""
    fields = {name: request.pop(name) for name in ("black_box", "queries") if name in request}
    settings = AuditSettings(budget="quick", samples=samples, **fields)
    audit = api.run(api.prepare(api.Request(model, settings=settings, **request)))
    assert audit.failure is None
    return audit


def verdict(audit: Audit, least: float = 0.65) -> str:
    """The label of an audit whose model answers as well as it was trained to."""
    document = audit.report.to_dict()
    assert document["accuracy"]["clean"]["value"] >= least
    return str(document["verdict"]["label"])


#: File, what is given beside it, and a sentence that the report has about it.
SETUPS: dict[str, tuple[str, dict[str, Any], str]] = {
    "lightning": ("lightning.ckpt", {"arch": f"{NETS}cnn"}, "The prefix 'net.' was dropped"),
    "keras": ("keras.onnx", {}, "channels"),
    "traced at one point": ("traced.ts", {}, "a single point each time"),
    "compiled and parallel": ("compiled.pt", {"arch": f"{NETS}cnn"}, ""),
    "one logit": (
        "one_logit.safetensors", {"arch": f"{NETS}one_logit", "data": str(FILES / "even.npz")}, "one logit"
    ),
    "signal in bfloat16": (
        "signal.pt", {"arch": f"{NETS}signal", "data": str(FILES / "signals.npz"), "eps": 0.1}, ""
    ),
    "merged LoRA": ("lora.pt", {"arch": f"{NETS}mlp"}, "vectors"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "given", "note"), SETUPS.values(), ids=SETUPS.keys())
def test_an_honest_model_gets_a_verdict(file: str, given: dict[str, Any], note: str) -> None:
    if file.endswith(".onnx"):
        pytest.importorskip("onnx")
    audit = audited(str(FILES / file), **given)
    assert verdict(audit) in ("clear", "inconclusive")
    notes = " ".join(audit.report.to_dict()["notes"])
    assert note in notes, notes
    assert "could not be traced" not in notes


def test_a_table_of_a_hospital(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "features.toml").write_text(FEATURES)
    audit = audited(
        str(FILES / "hospital.onnx"), data=str(FILES / "patients.csv"), target="outcome", eps=0.05,
        features=str(tmp_path / "features.toml"),
    )  # fmt: skip
    assert verdict(audit) in ("clear", "inconclusive")


def test_a_quantised_network_hides_its_gradient() -> None:
    pytest.importorskip("onnx")
    audit = audited(str(FILES / "quantised.onnx"))
    assert verdict(audit) == "masked"


def test_an_exported_program(tmp_path: Path) -> None:
    program = torch.export.export(
        nets.cnn().eval(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = api.load(str(tmp_path / "model.pt2"))
    assert loaded.module(torch.rand(5, 1, 8, 8)).shape == (5, 10)


def test_a_folder_of_transformers() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: MASKAUDIT_EXTRAS=dev,families")
    assert verdict(audited(f"hf:{FILES / 'hugging_face'}")) in ("clear", "inconclusive")


def test_a_timm_checkpoint_with_its_average(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: MASKAUDIT_EXTRAS=dev,families")
    spec = "timm:test_byobnet(num_classes=10, in_chans=1)"
    model = timm.create_model("test_byobnet", num_classes=10, in_chans=1)
    average = importlib.import_module("timm.utils").ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        model.head.fc.bias += 1
    average.update(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saver = importlib.import_module("timm.utils").CheckpointSaver(
        model, optimizer, model_ema=average, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(1, 0.5)
    loaded = api.load_model(str(tmp_path / "last.pth.tar"), arch=spec, trust_pickle=True)
    assert torch.equal(loaded.module.head.fc.bias, average.module.head.fc.bias)  # type: ignore[union-attr]
    assert any("state_dict_ema" in note for note in loaded.notes)


def test_trees_of_xgboost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xgboost", reason="xgboost is not installed")
    monkeypatch.setattr(make, "FILES", tmp_path)
    monkeypatch.setattr(nets, "FOREST", tmp_path / "forest.ubj")
    make.forest()
    audit = audited(f"py:{nets.__name__}:forest", black_box=True, queries=2000)
    assert verdict(audit) == "inconclusive"


class Answers(http.server.BaseHTTPRequestHandler):
    """A service that knows the network of `compiled.pt`."""

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with torch.no_grad():
            scores = served()(torch.tensor(content["inputs"]))
        body = json.dumps({"scores": scores.tolist()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def served() -> torch.nn.Module:
    model = nets.cnn()
    held = torch.load(FILES / "compiled.pt", weights_only=True)["model"]
    model.load_state_dict({name.removeprefix("_orig_mod.module."): value for name, value in held.items()})
    return model.eval()


@pytest.fixture
def service() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_service_behind_a_url(service: str) -> None:
    assert verdict(audited(service, samples=20, black_box=True, queries=1500)) == "inconclusive"
