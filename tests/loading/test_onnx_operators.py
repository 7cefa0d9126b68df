"""The operator tests that the package `onnx` ships: right, or refused at load; and what a wrong conversion comes to."""

from __future__ import annotations

import importlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskaudit.errors import InputError
from maskaudit.loading.onnx.ops import OPS
from maskaudit.sources import load_model

from .test_onnx import export

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
HELPER = importlib.import_module("onnx.helper")
NUMPY = importlib.import_module("onnx.numpy_helper")
#: Cases per operator; `benchmarks/onnx_operators.py` runs all.
CASES = 2


@pytest.fixture(scope="module")
def kinds() -> dict[str, Counter[str]]:
    """What becomes of the first tests of each operator, with the names of those that are wrong or late."""
    operators = pytest.importorskip("benchmarks.onnx_operators", reason="run from a checkout")
    seen: Counter[str] = Counter()
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, operator, _, model, x, expected in operators.cases(None):
        seen[operator] += 1
        if seen[operator] <= CASES:
            kind, _ = operators.tried(operators.CONVERTERS["maskaudit"], model, x, expected)
            found[operator][kind if kind in ("right", "refused") else name] += 1
    return found


@pytest.mark.heavy
def test_no_operator_is_wrong_or_fails_late(kinds: dict[str, Counter[str]]) -> None:
    assert {name for found in kinds.values() for name in found} == {"right", "refused"}


@pytest.mark.parametrize(
    "operator",
    ["LSTM", "GRU", "RNN", "Attention", "RMSNormalization", "LayerNormalization", "ScatterND", "ScatterElements",
     "GatherND", "GridSample", "LpNormalization", "LpPool", "Asinh", "Resize", "Selu", "SpaceToDepth", "ArgMax", "DFT"],
)  # fmt: skip
def test_families_of_operators_are_right(operator: str, kinds: dict[str, Counter[str]]) -> None:
    assert kinds[operator] == {"right": min(CASES, sum(kinds[operator].values()))}


def tiny(nodes: list[Any], shape: list[int], weights: dict[str, Any] | None = None, opset: int = 18) -> Any:
    """A model of `x` to `y`."""
    tensors = [NUMPY.from_array(torch.as_tensor(value).numpy(), name) for name, value in (weights or {}).items()]
    x, y = HELPER.make_tensor_value_info("x", 1, shape), HELPER.make_tensor_value_info("y", 1, None)
    graph = HELPER.make_graph(nodes, "g", [x], [y], tensors)
    return HELPER.make_model(graph, opset_imports=[HELPER.make_opsetid("", opset)])


@pytest.mark.parametrize(("keep", "factor"), [(True, 2.0), (False, 3.0)])
def test_a_branch_with_a_constant_condition_is_taken(keep: bool, factor: float, tmp_path: Path) -> None:
    def branch(number: float) -> Any:
        weight = NUMPY.from_array(torch.tensor(number).numpy(), "factor")
        return HELPER.make_graph(
            [HELPER.make_node("Mul", ["x", "factor"], ["z"], "scale")], "b", [],
            [HELPER.make_tensor_value_info("z", 1, None)], [weight],
        )  # fmt: skip

    node = HELPER.make_node("If", ["keep"], ["y"], "choice", then_branch=branch(2.0), else_branch=branch(3.0))
    onnx.save(tiny([node], [2, 3], {"keep": torch.tensor(keep)}), tmp_path / "m.onnx")
    module = load_model(str(tmp_path / "m.onnx")).module
    assert torch.equal(module(torch.ones(2, 3)), factor * torch.ones(2, 3))
    assert any("choice" in name and "scale" in name for name, _ in module.named_modules())


def test_a_condition_on_the_input_is_refused(tmp_path: Path) -> None:
    body = HELPER.make_graph(
        [HELPER.make_node("Relu", ["x"], ["z"])], "b", [], [HELPER.make_tensor_value_info("z", 1, None)]
    )
    nodes = [
        HELPER.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        HELPER.make_node("Cast", ["s"], ["c"], to=9),
        HELPER.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
    ]
    onnx.save(tiny(nodes, [2, 3]), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="not converted: If"):
        load_model(str(tmp_path / "m.onnx"))


def test_a_wrong_conversion_is_refused_with_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3), nn.Softmax(1))
    export(net, torch.rand(2, 3, 4), path)
    load_model(str(path))

    def slightly(a: Any, x: Tensor) -> Tensor:
        return 1.02 * torch.tanh(x)

    monkeypatch.setitem(OPS, "Tanh", slightly)
    with pytest.raises(InputError, match=r"gives other values than the file: \S*Tanh\S* differs"):
        load_model(str(path))


def test_rounding_on_the_edge_of_a_step_is_no_difference(tmp_path: Path) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.Linear(64, 10))

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.body(x)
            return torch.round(scores * 1e6)  # every last bit falls on one side or the other

    torch.manual_seed(0)
    export(Steps(), torch.rand(2, 1, 28, 28), tmp_path / "m.onnx")
    load_model(str(tmp_path / "m.onnx"))


def test_what_could_not_be_compared_is_noted(tmp_path: Path) -> None:
    class Any_(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)

    path = tmp_path / "m.onnx"
    export(Any_(), torch.rand(2, 1, 8, 8), path)
    model = onnx.load(path)
    for size in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.ClearField("dim_value")
        size.dim_param = "free"
    onnx.save(model, path)
    assert any("was not compared" in note for note in load_model(str(path)).notes)


def test_quantised_operators_are_right(tmp_path: Path) -> None:
    scale, zero = torch.tensor(1 / 255), torch.tensor(0, dtype=torch.uint8)
    weight = torch.randint(-100, 100, (6, 3), dtype=torch.int8)
    weights = {"s": scale, "z": zero, "w": weight, "ws": torch.tensor(0.01), "wz": torch.tensor(0, dtype=torch.int8),
               "ys": torch.tensor(0.05), "yz": torch.tensor(128, dtype=torch.uint8)}  # fmt: skip
    nodes = [
        HELPER.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        HELPER.make_node("QLinearMatMul", ["q", "s", "z", "w", "ws", "wz", "ys", "yz"], ["p"], "m"),
        HELPER.make_node("DequantizeLinear", ["p", "ys", "yz"], ["y"], "d"),
    ]
    onnx.save(tiny(nodes, [2, 6], weights), tmp_path / "m.onnx")
    x = torch.rand(2, 6)
    found = load_model(str(tmp_path / "m.onnx")).module(x)
    exact = (torch.round(x * 255) / 255) @ (weight.float() * 0.01)
    assert float((found - exact).abs().max()) <= 0.05 / 2 + 1e-6


def steps(x: Tensor, scale: float, zero: int) -> Tensor:
    """What 8-bit whole numbers stand for."""
    return scale * ((x / scale).round() + zero).clamp(0, 255) - scale * zero


#: Quantised operators of ONNX Runtime: inputs and attributes, and what they compute of real numbers.
W8 = torch.arange(-30, 30).reshape(5, 12).to(torch.int8)
RUNTIME: dict[str, tuple[str, list[str], dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "sum": ("QLinearAdd", ["q", "s", "z", "q", "s", "z", "ys", "yz"], {}, lambda x: x + x),
    "product": ("QLinearMul", ["q", "s", "z", "q", "s", "z", "ys", "yz"], {}, lambda x: x * x),
    "sigmoid": ("QLinearSigmoid", ["q", "s", "z", "ys", "yz"], {}, torch.sigmoid),
    "slope": ("QLinearLeakyRelu", ["q", "s", "z", "ys", "yz"], {"alpha": 0.2}, lambda x: x),
    "side by side": (
        "QLinearConcat", ["ys", "yz", "q", "s", "z", "q", "s", "z"], {"axis": 1}, lambda x: torch.cat([x, x], 1),
    ),
    "layer": (
        "QGemm", ["q", "s", "z", "w", "ws", "", "c", "ys", "yz"], {"transB": 1},
        lambda x: x @ (0.01 * W8.float()).T + torch.arange(5) * 0.01 / 255,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("operator", "inputs", "attributes", "exact"), RUNTIME.values(), ids=RUNTIME)
def test_quantised_operators_of_onnx_runtime_are_right_and_have_steps(
    tmp_path: Path, operator: str, inputs: list[str], attributes: dict[str, Any], exact: Callable[[Tensor], Tensor]
) -> None:
    byte = torch.uint8
    weights = {"s": torch.tensor(1 / 255), "z": torch.tensor(0, dtype=byte), "ys": torch.tensor(0.05), "w": W8,
               "yz": torch.tensor(128, dtype=byte), "ws": torch.tensor(0.01), "c": torch.arange(5).int()}  # fmt: skip
    nodes = [
        HELPER.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        HELPER.make_node(operator, inputs, ["p"], "m", domain="com.microsoft", **attributes),
        HELPER.make_node("DequantizeLinear", ["p", "ys", "yz"], ["y"], "d"),
    ]
    model = tiny(nodes, [2, 12], weights)
    model.opset_import.append(HELPER.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "m.onnx")
    module, x = load_model(str(tmp_path / "m.onnx")).module, torch.rand(2, 12)
    assert torch.allclose(module(x), steps(exact(steps(x, 1 / 255, 0)), 0.05, 128), atol=1e-5)
    assert {"m/QuantizeLinear"} <= {name for name, _ in module.named_modules()}


def test_quantised_operators_that_are_not_converted_are_named(tmp_path: Path) -> None:
    for operator, attributes, says in (
        ("QAttention", {}, "not converted: com.microsoft.QAttention"),
        ("QLinearGlobalAveragePool", {"channels_last": 1}, "channels last, which is not converted"),
    ):
        model = tiny([HELPER.make_node(operator, ["x"], ["y"], "m", domain="com.microsoft", **attributes)], [2, 6])
        model.opset_import.append(HELPER.make_opsetid("com.microsoft", 1))
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(InputError, match=says):
            load_model(str(tmp_path / "m.onnx"))
