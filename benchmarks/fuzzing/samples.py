"""Valid files of every kind, small, made anew each time: what mutations start from."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

#: Architecture of the checkpoints here: 64 inputs, 10 classes, the shape of the embedded digits.
ARCH = "mlp(in_features=64, num_classes=10, hidden=[4])"
#: What our own trainer writes into a checkpoint.
METADATA: dict[str, Any] = {
    "arch": ARCH,
    "data": "digits",
    "epochs": 2,
    "method": "standard",
    "outputs": "logits",
    "seed": 0,
    "threat": {"norm": "Linf", "eps": 0.2, "bounds": [0.0, 1.0]},
    "mean": [0.5],
    "std": [0.25],
    "reject_class": None,
    "certified": 0.25,
}


def network() -> nn.Module:
    """The module of `ARCH` with weights that depend on no random state."""
    from maskaudit.networks import registry as models

    with torch.random.fork_rng(devices=[]):
        module = models.build(ARCH)
    with torch.no_grad():
        for parameter in module.parameters():
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((count * 1.7).sin().mul(0.3).reshape(parameter.shape))
    return module.eval()


def state() -> dict[str, Tensor]:
    """Its state dict."""
    return {name: value.detach().clone() for name, value in network().state_dict().items()}


def checkpoint(metadata: dict[str, Any] | str | None = None, more: dict[str, str] | None = None) -> bytes:
    """A checkpoint as our trainer writes it; `metadata` in place of `METADATA`, as JSON or as a text taken as it is."""
    given = METADATA if metadata is None else metadata
    text = given if isinstance(given, str) else json.dumps(given, sort_keys=True)
    return safetensors.torch.save(state(), metadata={"maskaudit": text, **(more or {})})


def weights() -> bytes:
    """Plain safetensors, which need --arch."""
    return safetensors.torch.save(state())


def saved(content: object, *, legacy: bool = False) -> bytes:
    """What torch.save makes of it."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def plain_pickle() -> bytes:
    """A pickle that torch.save did not write."""
    return pickle.dumps({"state_dict": {"w": [1.0, 2.0]}, "epoch": 3}, protocol=2)


class Classifier(nn.Module):
    """The usual operations of a small classifier of 8×8 images, for the exported formats."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 10) for images (N, 1, 8, 8)."""
        x = torch.relu(self.norm(self.conv(x * 2 - 1)))
        x = nn.functional.max_pool2d(x, 2) + nn.functional.avg_pool2d(x, 2)
        scores: Tensor = self.head(torch.cat([x.sigmoid()], dim=1).flatten(1))
        return scores


def classifier() -> Classifier:
    """The same weights each time."""
    module = Classifier().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((count * 2.3).cos().mul(0.3).reshape(parameter.shape))
    return module


def exported(module: nn.Module | None = None, *, free: bool = True) -> bytes:
    """An exported program (.pt2) of `Classifier` or another module, its batch size free or fixed at 2."""
    shapes = ({0: torch.export.Dim("batch", min=1)},) if free else None
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module or classifier(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes)
        torch.export.save(program, buffer)
    return buffer.getvalue()


def torchscript() -> bytes:
    """A traced archive."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(classifier(), torch.zeros(2, 1, 8, 8)), buffer)
    return buffer.getvalue()


def onnx_model(nodes: list[Any] | None = None, more: dict[str, np.ndarray] | None = None, *, batch: Any = "N") -> Any:
    """An ONNX model of 8×8 images: a convolution, pooling, reshaping and a linear layer, or the given nodes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    usual = [
        helper.make_node("Conv", ["x", "kernel", "shift"], ["a"], name="conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MaxPool", ["b"], ["c"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Clip", ["c", "low", "high"], ["d"], name="clip"),
        helper.make_node("Reshape", ["d", "shape"], ["e"], name="flat"),
        helper.make_node("Gemm", ["e", "matrix", "offset"], ["y"], name="head", transB=1),
    ]
    arrays = {
        "kernel": np.sin(np.arange(18, dtype=np.float32)).reshape(2, 1, 3, 3), "shift": np.zeros(2, np.float32),
        "low": np.float32(0).reshape(()), "high": np.float32(6).reshape(()), "shape": np.array([0, -1], np.int64),
        "matrix": np.cos(np.arange(320, dtype=np.float32)).reshape(10, 32), "offset": np.zeros(10, np.float32),
    }  # fmt: skip
    used = {name for node in nodes or usual for name in node.input}
    kept = {name: array for name, array in {**arrays, **(more or {})}.items() if name in used}
    graph = helper.make_graph(
        nodes or usual,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(array, name) for name, array in kept.items()],
    )
    return helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


#: Two-class points and their labels, for every form of data that keeps them as arrays.
POINTS = np.linspace(0, 1, 192, dtype=np.float32).reshape(3, 1, 8, 8)
LABELS = np.array([0, 1, 1])


def npy(array: np.ndarray) -> bytes:
    """One array of numpy.save."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tensors() -> dict[str, Tensor]:
    """Points and labels as tensors."""
    return {"x": torch.from_numpy(POINTS), "y": torch.from_numpy(LABELS)}


def plain(content: dict[str, Tensor]) -> bytes:
    """Safetensors without metadata."""
    return safetensors.torch.save(content)


def table(separator: str = ",", *, names: bool = False) -> bytes:
    """A text table of four features and labels, as numbers or as names of classes."""
    kinds = ("cat", "dog") if names else ("0", "1")
    head = separator.join(("age", "pulse", "red", "blue", "y"))
    rows = [separator.join((str(n), str(n / 10), str(n % 2), str(1 - n % 2), kinds[n % 2])) for n in range(6)]
    return "\n".join((head, *rows, "")).encode()


FEATURES = """\
[[feature]]
column = "age"
kind = "integer"
bounds = [0, 120]
eps = 2

[[feature]]
column = "pulse"
bounds = [0.0, 250.0]
eps = "5/2"

[[feature]]
columns = ["red", "blue"]
kind = "categorical"
"""


def shard() -> bytes:
    """A tar archive of two images with their class numbers, and a member that is neither."""
    members = {"a/1.png": image(), "a/1.cls": b"0", "2.jpg": image("L", "JPEG"), "2.cls": b"1\n", "2.json": b"{}"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def house_numbers(packed: bool) -> bytes:
    """Two images as SVHN keeps them."""
    from scipy import io as matlab

    buffer = io.BytesIO()
    pixels = (np.arange(32 * 32 * 3 * 2) % 251).astype(np.uint8).reshape(32, 32, 3, 2)
    matlab.savemat(buffer, {"X": pixels, "y": np.array([[1], [10]], np.uint8)}, do_compression=packed)
    return buffer.getvalue()


def index(file: str) -> bytes:
    """The index of a checkpoint whose tensors all lie in one file."""
    return json.dumps({"metadata": {"total_size": 1234}, "weight_map": dict.fromkeys(state(), file)}).encode()


def npz(**arrays: Any) -> bytes:
    """An .npz of two digits, or of the given arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **(arrays or {"x": POINTS, "y": LABELS}))
    return buffer.getvalue()


def rich_npz() -> bytes:
    """An .npz with everything that may be in one."""
    pixels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    names = np.array(["cat", "dog"])
    return npz(x_train=pixels, y_train=np.array([0, 1, 0, 1]), x=pixels[:2], y=np.array([[0], [1]]), class_names=names,
               num_classes=np.array(2))  # fmt: skip


def idx(shape: tuple[int, ...] = (3, 28, 28)) -> bytes:
    """An IDX file of unsigned bytes."""
    head = bytes((0, 0, 8, len(shape))) + b"".join(length.to_bytes(4, "big") for length in shape)
    return head + bytes(i % 251 for i in range(int(np.prod(shape))))


def packed(content: bytes) -> bytes:
    """Gzipped, the same bytes each time."""
    return gzip.compress(content, mtime=0)


def image(mode: str = "L", form: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    """One image of a gradient."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(buffer, form)
    return buffer.getvalue()


def plan() -> bytes:
    """A plan of the adaptive attack that uses every field."""
    repair = {"remedy": "open", "module": "2", "op": "relu", "line": None, "scale": 1.0}
    stage = {
        "repairs": [], "loss": "margin", "start": "random", "steps": 50, "step": 0.25, "restarts": 1, "targets": 3,
        "draws": 1, "purpose": "attack",
    }  # fmt: skip
    return json.dumps({"plan_version": 1, "stages": [stage, {**stage, "repairs": [repair]}]}).encode()


GATE = """\
data = "digits"
eps = "8/255"
bounds = [0.0, 1.0]
mean = [0.5]
seed = 3
select = ["saturation", "pgd"]

[[models]]
name = "net"
model = "model.safetensors"
claim = 0.53
certified = 0.1
batch_size = 64
fail_on = "masked"

[[models]]
model = "zoo:pgd-at"
norm = "L2"
eps = 0.5
budget = "quick"

[[baseline]]
rule = "zero-gradient"
module = "body"
op = "round"
model = "net"
reason = "quantised on purpose"
expires = 2027-01-31
accept_masked = false
"""

CHECK = """\
[check]
data = "test.npz"
arch = "mlp(hidden=[8])"
norm = "Linf"
eps = "8/255"
bounds = [0, 1]
mean = [0.1, 0.2, 0.3]
outputs = "logits"
reject_class = 3
claim = 0.53
samples = 100
seed = 1
workers = 2
surrogates = ["a.pt@net.py:make"]
attacks = ["torchattacks:PGD"]
ignore = ["square"]
reports = ["html=report.html"]
out = "out"
quiet = true
"""


def trained() -> bytes:
    """The checkpoint after a short training, so that an audit of it finds something to show."""
    from maskaudit.data import load_data

    module, data = network().train(), load_data("digits", split="train")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module((data.x - 0.5) / 0.25), data.y).backward()
        optimizer.step()
    return safetensors.torch.save(module.eval().state_dict(), metadata={"maskaudit": json.dumps(METADATA)})


def audit(folder: Path, model: Path) -> None:
    """A real audit of few points into `folder`: report, evidence, plan."""
    from maskaudit import api
    from maskaudit.command.output import parse_outputs, write_outputs
    from maskaudit.settings import AuditSettings

    settings = AuditSettings(budget="quick", samples=12, select=("pgd", "saturation", "noise", "zero-gradient"))
    done = api.run(api.prepare(api.Request(str(model), settings=settings)))
    document = done.report.to_dict()
    wanted = [(form, path) for form, path in parse_outputs((), str(folder)) if form in ("json", "evidence", "plan")]
    write_outputs(wanted, document, done.evidence)


#: What the entries below depend on, in place of a digest.
CONTENT = "content"


def task(attack: bool) -> Any:
    """A task whose result a journal may keep: an attack or a probe of two points."""
    from maskaudit.auditing.catalogue import catalogue
    from maskaudit.auditing.engine.interface import Job
    from maskaudit.probes.run import ProbeTask
    from maskaudit.rng import PointRNG
    from maskaudit.settings import BUDGETS
    from maskaudit.threat import ThreatModel

    known = catalogue(BUDGETS["quick"])
    x, y, rng = torch.from_numpy(POINTS[:2]), torch.from_numpy(LABELS[:2]), PointRNG(0, torch.arange(2))
    if attack:
        return Job(known.attacks[0], x, y, ThreatModel(), rng, {})
    return ProbeTask(known.probes[0], x, y, ThreatModel(), rng)


def entries(folder: Path) -> list[bytes]:
    """What a journal in `folder` keeps of a finished attack and of a finished probe, without its seal."""
    from maskaudit.attacks.interface import Attempt
    from maskaudit.auditing.journal import Journal, Kept, unsealed
    from maskaudit.results import Location, ProbeFinding, ProbeResult
    from maskaudit.target import PassLedger

    counts = torch.ones(2, dtype=torch.int64)
    found = ProbeFinding("half of it", Location("net.1", "round", "net.py", 7))
    measured = ProbeResult("saturation", "Saturation", "finding", 0.5, "share", 0.1, 0.9, 2, findings=(found,))
    results = (Attempt(torch.from_numpy(POINTS[:2]), counts, counts), measured)
    journal = Journal(folder / "entries", {}, resume=False)
    for number, result in enumerate(results):
        tensors, plain = task(not number).packed(result)
        journal.write(str(number), CONTENT, Kept(tensors, PassLedger(3, 2), 0.5, plain))
    return [unsealed(path.read_bytes()) for path in sorted(journal.folder.glob("*.entry"))]


def zipped(members: dict[str, bytes]) -> bytes:
    """A stored zip with fixed dates."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()
