"""ONNX: converted operator by operator, weights from next to the model only, the same verdict as the torch model."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskaudit.api import audit
from maskaudit.errors import InputError
from maskaudit.settings import AuditSettings
from maskaudit.sources import load_model
from maskaudit.target.chunks import FixedBatch

from .nets import X

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
HELPER = importlib.import_module("onnx.helper")
EXPORTERS = [False, True]


def export(
    module: nn.Module, x: Tensor, path: Path, *, dynamo: bool = False, free: bool = True, **options: Any
) -> None:
    """Write by torch's exporter; the newer one (dynamo) needs the package onnxscript."""
    if dynamo:
        pytest.importorskip("onnxscript", reason="the package onnxscript is not installed")
        options: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1)},) if free else None}
    else:
        options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}} if free else None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (x,), path, dynamo=dynamo, verbose=False, **options)


class Residual(nn.Module):
    """The usual operators of image classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6())
        self.depthwise = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
        self.attend = nn.Linear(4, 4)
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.round(x * 4) / 4)
        x = nn.functional.max_pool2d(x, 2) + nn.functional.silu(self.depthwise(x))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + torch.softmax(self.attend(tokens), dim=-1) * torch.sigmoid(tokens)
        pooled = torch.cat([tokens.mean(1), tokens.amax(1)], dim=1)
        scores: Tensor = self.head(torch.clamp(nn.functional.gelu(pooled), -0.1, 3.0))
        return scores


@pytest.mark.parametrize("dynamo", EXPORTERS, ids=["legacy exporter", "dynamo exporter"])
def test_a_converted_model_answers_as_the_model(dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = Residual(), tmp_path / "model.bin"
    x = torch.rand(2, 1, 8, 8)
    export(net, x, path, dynamo=dynamo)
    loaded = load_model(str(path))
    assert loaded.format == "onnx"
    assert loaded.trusted_code == ()
    assert len(loaded.sha256) == 64
    assert "gradients of the converted model" in loaded.notes[0]
    points = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.allclose(loaded.module(points), net(points), atol=1e-5)
    (mine,) = torch.autograd.grad(loaded.module(points).sum(), points)
    (theirs,) = torch.autograd.grad(net(points).sum(), points)
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_modules_bear_the_names_of_nodes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), X, path)
    nodes = {node.name for node in onnx.load(path).graph.node}
    names = {name for name, _ in load_model(str(path)).module.named_modules()}  # type: ignore[union-attr]
    assert nodes <= names, nodes


@pytest.mark.parametrize("free", [True, False])
def test_a_fixed_batch_size(free: bool, tmp_path: Path) -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, 3).reshape(3, 4) if not free else x * 2

    path = tmp_path / "m.onnx"
    export(Flat(), X, path, free=free)
    loaded = load_model(str(path))
    assert isinstance(loaded.module, FixedBatch) == (not free)
    assert loaded.module(torch.rand(7, 4)).shape == (7, 4)


def model_of(nodes: list[Any], weights: dict[str, np.ndarray], shape: list[Any], *, opset: int = 21) -> Any:
    """A model with input x and output y."""
    value = HELPER.make_tensor_value_info
    graph = HELPER.make_graph(
        nodes, "g", [value("x", 1, shape)], [value("y", 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return HELPER.make_model(graph, opset_imports=[HELPER.make_opsetid("", opset)], ir_version=10)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


Case = tuple[str, dict[str, Any], list[Any], tuple[int, ...]]

#: operator, attributes, further inputs, shape of x; each is held against onnx's own reference evaluator.
OPERATORS: list[Case] = [
    *((name, {}, [], (2, 3, 4)) for name in (
        "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "Gelu", "Mish", "HardSwish", "HardSigmoid", "ThresholdedRelu",
        "Sigmoid", "Tanh", "Softplus", "Softsign", "Softmax", "LogSoftmax", "Hardmax", "Neg", "Abs", "Sign", "Floor",
        "Ceil", "Round", "Exp", "Erf", "Sin", "Cos", "Reciprocal", "Identity", "Flatten", "Transpose", "ReduceMean",
        "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
        "ReduceLogSumExp", "GlobalAveragePool",
    )),
    ("GlobalMaxPool", {}, [], (2, 3, 4, 4)),
    ("LeakyRelu", {"alpha": 0.3}, [], (2, 3)),
    ("PRelu", {}, [floats(3)], (2, 3)),
    ("Clip", {}, [np.float32(-0.5), np.float32(0.5)], (2, 3)),
    ("Clip", {}, [None, np.float32(0.5)], (2, 3)),
    *((name, {}, [floats(3)], (2, 3)) for name in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum")),
    ("Mod", {"fmod": 1}, [floats(3)], (2, 3)),
    ("Pow", {}, [np.float32(2)], (2, 3)),
    ("Gemm", {"alpha": 2.0, "beta": 0.5, "transB": 1}, [floats(4, 3), floats(4)], (2, 3)),
    ("MatMul", {}, [floats(3, 4)], (2, 3)),
    ("Conv", {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1], "strides": [2, 1]},
        [floats(4, 3, 3, 3), floats(4)], (2, 3, 6, 6)),
    ("Conv", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}, [floats(4, 3, 3, 3)], (2, 3, 6, 6)),
    ("Conv", {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}, [floats(4, 3, 3, 3)], (2, 3, 6, 6)),
    ("Conv", {"kernel_shape": [3], "dilations": [2], "group": 3}, [floats(3, 1, 3)], (2, 3, 8)),
    ("ConvTranspose", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        [floats(3, 4, 3, 3)], (2, 3, 4, 4)),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}, [], (2, 3, 5, 5)),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, [], (2, 3, 6, 6)),
    ("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}, [], (2, 3, 5, 5)),
    ("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, [], (2, 3, 5, 5)),
    ("BatchNormalization", {"epsilon": 1e-3}, [floats(3), floats(3), floats(3), floats(3) ** 2], (2, 3, 4, 4)),
    ("InstanceNormalization", {}, [floats(3), floats(3)], (2, 3, 4, 4)),
    ("LayerNormalization", {"axis": -1}, [floats(4), floats(4)], (2, 3, 4)),
    ("GroupNormalization", {"num_groups": 2}, [floats(4), floats(4)], (2, 4, 3, 3)),
    ("LRN", {"size": 3}, [], (5, 5, 3, 3)),
    ("Softmax", {"axis": 1}, [], (2, 3, 4)),
    ("Flatten", {"axis": 2}, [], (2, 3, 4)),
    ("Reshape", {}, [ints(0, -1)], (2, 3, 4)),
    ("Transpose", {"perm": [1, 0, 2]}, [], (2, 3, 4)),
    ("Squeeze", {}, [ints(1)], (2, 1, 4)),
    ("Unsqueeze", {}, [ints(0, -1)], (2, 3)),
    ("Slice", {}, [ints(1, -3), ints(3, 100), ints(1, 2), ints(1, 2)], (2, 4, 5)),
    ("Slice", {}, [ints(-1), ints(-100), ints(1), ints(-2)], (2, 5)),
    ("Gather", {"axis": 1}, [ints(2, -1)], (2, 3, 4)),
    ("Gather", {"axis": 1}, [np.array(1)], (2, 3, 4)),
    ("GatherElements", {"axis": 1}, [np.array([[0, -1], [1, 1]])], (2, 3)),
    ("Concat", {"axis": -1}, [floats(2, 2)], (2, 3)),
    ("Expand", {}, [ints(1, 3, 4)], (2, 1, 1)),
    ("Tile", {}, [ints(2, 1)], (2, 3)),
    ("Pad", {}, [ints(0, 1, 0, 2), np.float32(0.5)], (2, 3)),
    ("Pad", {"mode": "reflect"}, [ints(0, 0, 1, 2, 0, 0, 2, 1)], (2, 3, 4, 4)),
    ("Pad", {"mode": "edge"}, [ints(0, 0, 1, 2, 0, 0, 2, 1)], (2, 3, 4, 4)),
    ("ReduceMean", {"keepdims": 0}, [ints(1, -1)], (2, 3, 4)),
    ("ReduceProd", {"keepdims": 0}, [ints(0, 2)], (2, 3, 4)),
    ("CumSum", {}, [np.array(1)], (2, 3)),
    ("DepthToSpace", {"blocksize": 2}, [], (2, 8, 2, 3)),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [], (2, 8, 2, 3)),
    ("SpaceToDepth", {"blocksize": 2}, [], (2, 2, 4, 6)),
    ("Einsum", {"equation": "nij,jk->nik"}, [floats(4, 5)], (2, 3, 4)),
    ("Resize", {"mode": "linear"}, [None, None, ints(2, 3, 7, 9)], (2, 3, 4, 4)),
    ("Resize", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        [None, np.array([1, 1, 1.5, 2], dtype=np.float32)], (2, 3, 4, 4)),
]  # fmt: skip


@pytest.mark.parametrize("case", OPERATORS, ids=lambda case: case[0])
def test_operators_do_what_the_reference_does(
    case: tuple[str, dict[str, Any], list[Any], tuple[int, ...]], tmp_path: Path
) -> None:
    name, attributes, inputs, shape = case
    named = {f"w{number}": np.asarray(value) for number, value in enumerate(inputs) if value is not None}
    given = ["" if value is None else f"w{number}" for number, value in enumerate(inputs)]
    node = HELPER.make_node(name, ["x", *given], ["y"], name="here", **attributes)
    model = model_of([node], named, [None, *shape[1:]])
    onnx.save(model, tmp_path / "m.onnx")
    x = (np.random.default_rng(1).normal(size=shape) * 2).astype(np.float32)
    reference = importlib.import_module("onnx.reference").ReferenceEvaluator(model)
    (expected,) = reference.run(None, {"x": x})
    found = load_model(str(tmp_path / "m.onnx")).module(torch.from_numpy(x)).detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_quantised_numbers(tmp_path: Path) -> None:
    scale, zero = np.float32(0.1), np.array(10, dtype=np.uint8)
    nodes = [
        HELPER.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="in"),
        HELPER.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="out"),
    ]
    model = model_of(nodes, {"s": np.asarray(scale), "z": zero}, [None, 3])
    onnx.save(model, tmp_path / "m.onnx")
    x = np.array([[-2.0, 0.04, 0.06]], dtype=np.float32)
    (expected,) = importlib.import_module("onnx.reference").ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(load_model(str(tmp_path / "m.onnx")).module(torch.from_numpy(x)), expected, atol=1e-6)


def test_several_outputs_of_a_node_and_shapes_at_run_time(tmp_path: Path) -> None:
    nodes = [
        HELPER.make_node("Shape", ["x"], ["shape"], end=1),
        HELPER.make_node("Concat", ["shape", "rest"], ["wanted"], axis=0),
        HELPER.make_node("Reshape", ["x", "wanted"], ["flat"]),
        HELPER.make_node("Split", ["flat"], ["a", "b"], axis=1, num_outputs=2),
        HELPER.make_node("Sub", ["a", "b"], ["y"]),
    ]
    onnx.save(model_of(nodes, {"rest": ints(4)}, [None, 2, 2]), tmp_path / "m.onnx")
    x = torch.rand(3, 2, 2)
    assert torch.equal(load_model(str(tmp_path / "m.onnx")).module(x), x[:, 0] - x[:, 1])


def outside(path: Path, location: str) -> None:
    """A linear model whose weights lie in another file."""
    model = model_of([HELPER.make_node("MatMul", ["x", "w"], ["y"])], {"w": floats(4, 3)}, [None, 4])
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "4"), ("length", str(4 * 12))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    content, tensor.raw_data = tensor.raw_data, b""
    path.write_bytes(model.SerializeToString())
    (path.parent / "weights.bin").write_bytes(b"\0\0\0\0" + content)


def test_weights_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    outside(path, "weights.bin")
    loaded = load_model(str(path))
    assert torch.allclose(loaded.module(X), X @ torch.from_numpy(floats(4, 3)))
    changed = bytearray((tmp_path / "weights.bin").read_bytes())
    changed[7] ^= 1
    (tmp_path / "weights.bin").write_bytes(changed)
    assert load_model(str(path)).sha256 != loaded.sha256, "the digest covers the weights"


ESCAPES = ["../weights.bin", "/etc/hostname", "link.bin", "sub/../../weights.bin"]


@pytest.mark.parametrize("location", ESCAPES)
def test_weights_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(100))
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    outside(folder / "m.onnx", location)
    with pytest.raises(InputError, match="outside its own folder"):
        load_model(str(folder / "m.onnx"))


def broken(**changes: Any) -> Any:
    options: dict[str, Any] = {"nodes": [HELPER.make_node("Relu", ["x"], ["y"])], "weights": {}, "shape": [None, 4]}
    options |= changes
    return model_of(**options)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown operator": (
        lambda: broken(nodes=[HELPER.make_node("NonZero", ["x"], ["z"]), HELPER.make_node("Unique", ["z"], ["y"])]),
        "not converted: NonZero, Unique",
    ),
    "own domain": (
        lambda: broken(nodes=[HELPER.make_node("Relu", ["x"], ["y"], domain="com.mine")]), r"com\.mine\.Relu"
    ),
    "old": (lambda: broken(opset=6), "version 6 of the ONNX operators"),
    "dangling": (lambda: broken(nodes=[HELPER.make_node("Relu", ["z"], ["y"])]), "nothing before it provides"),
    "no output": (lambda: broken(nodes=[HELPER.make_node("Relu", ["x"], ["z"])]), "y is computed nowhere"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(make: Callable[[], Any], words: str, tmp_path: Path) -> None:
    onnx.save(make(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=words):
        load_model(str(tmp_path / "m.onnx"))


def test_damaged_and_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(broken(), path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="cannot be converted"):
        load_model(str(path))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"maskaudit\[onnx\]"):
        load_model(str(path))


@pytest.mark.heavy
def test_the_verdict_of_a_masked_model_and_its_place(tmp_path: Path, digits_net: nn.Module) -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = digits_net

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.body(torch.round(x * 2) / 2)
            return scores

    path = tmp_path / "m.onnx"
    export(Quantised(), torch.rand(2, 1, 8, 8), path)
    chosen = ("apgd-ce", "apgd-margin", "square", "zero-gradient", "repaired")
    report = audit(str(path), settings=AuditSettings(budget="quick", select=chosen)).report
    assert report.verdict.label == "masked"
    places = [place for mechanism in report.verdict.mechanisms for place in mechanism.locations]
    assert [(place.module, place.op) for place in places] == [("/Round", "round")]


@pytest.mark.parametrize("domain", ["qonnx.custom_op.general", "onnx.brevitas"])
def test_quantisers_of_qonnx(domain: str, tmp_path: Path) -> None:
    """Grids by hand: 2 bits signed and narrow are {-1, 0, 1}, 3 bits unsigned {0 … 7}, both times the step."""
    scalars = {"step": 0.5, "none": 0.0, "two": 2.0, "three": 3.0, "double": 2.0}
    signed, unsigned = {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}, {"signed": 0, "rounding_mode": "FLOOR"}
    nodes = [
        HELPER.make_node("Quant", ["x", "step", "none", "two"], ["q"], domain=domain, **signed),
        HELPER.make_node("Quant", ["x", "step", "none", "three"], ["u"], domain=domain, **unsigned),
        HELPER.make_node("BipolarQuant", ["x", "double"], ["b"], domain=domain),
        HELPER.make_node("Concat", ["q", "u", "b"], ["y"], axis=1),
    ]  # fmt: skip
    weights = {name: np.array(value, dtype=np.float32) for name, value in scalars.items()}
    onnx.save(model_of(nodes, weights, ["N", 5]), tmp_path / "q.onnx")
    loaded = load_model(str(tmp_path / "q.onnx"))
    q, u, b = loaded.module(torch.tensor([[-9.0, -0.3, 0.0, 0.3, 9.0]])).chunk(3, dim=1)
    assert q.tolist() == [[-0.5, -0.5, 0.0, 0.5, 0.5]]
    assert u.tolist() == [[0.0, 0.0, 0.0, 0.0, 3.5]]
    assert b.tolist() == [[-2.0, -2.0, 2.0, 2.0, 2.0]]


def test_a_quantiser_in_the_standard_domain_is_unknown(tmp_path: Path) -> None:
    nodes = [HELPER.make_node("BipolarQuant", ["x", "s"], ["y"])]
    onnx.save(model_of(nodes, {"s": np.array(1, dtype=np.float32)}, ["N", 5]), tmp_path / "q.onnx")
    with pytest.raises(InputError, match="not converted: BipolarQuant"):
        load_model(str(tmp_path / "q.onnx"))


def test_a_file_that_names_the_standard_domain_is_compared(tmp_path: Path) -> None:
    nodes = [HELPER.make_node("Relu", ["x"], ["h"]), HELPER.make_node("Softmax", ["h"], ["y"])]
    model = model_of(nodes, {}, [1, 5])
    model.opset_import[0].domain = "ai.onnx"
    onnx.save(model, tmp_path / "m.onnx")
    assert not any("not compared" in note for note in load_model(str(tmp_path / "m.onnx")).notes)


def test_a_batch_size_that_only_reshapes_state_is_opened(tmp_path: Path) -> None:
    """As exporters write a flattening for one image; the weights' own reshape is left as it is."""
    nodes = [
        HELPER.make_node("Reshape", ["x", "flat"], ["h"]), HELPER.make_node("Reshape", ["w", "matrix"], ["m"]),
        HELPER.make_node("MatMul", ["h", "m"], ["y"]),
    ]  # fmt: skip
    weights = {"flat": ints(1, 12), "matrix": ints(12, 5), "w": floats(3, 4, 5)}
    onnx.save(model_of(nodes, weights, [1, 1, 3, 4]), tmp_path / "one.onnx")
    loaded = load_model(str(tmp_path / "one.onnx"))
    x = torch.rand(7, 1, 3, 4)
    assert not isinstance(loaded.module, FixedBatch)
    assert torch.allclose(loaded.module(x), x.flatten(1) @ torch.from_numpy(weights["w"].reshape(12, 5)))
    assert any("reshapes" in note for note in loaded.notes)


def test_a_reshape_that_mixes_points_keeps_its_batch_size(tmp_path: Path) -> None:
    nodes = [HELPER.make_node("Reshape", ["x", "turned"], ["h"]), HELPER.make_node("Reshape", ["h", "back"], ["y"])]
    onnx.save(model_of(nodes, {"turned": ints(2, 6), "back": ints(3, 4)}, [2, 6]), tmp_path / "two.onnx")
    loaded = load_model(str(tmp_path / "two.onnx"))
    assert isinstance(loaded.module, FixedBatch)
