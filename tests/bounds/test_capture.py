"""Models as files bring them are read as networks: made for one point, with stated sizes, with a single output."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskaudit.bounds.capture import captured
from maskaudit.bounds.certificate import differences, margins
from maskaudit.bounds.linear import Region, intervals
from maskaudit.sources import load_model
from maskaudit.target import Target
from maskaudit.target.form import Form
from maskaudit.threat import ThreatModel

#: What stands before the linear layers, and how many numbers of (1, 2, 4, 4) it leaves.
HEADS = {
    "Clip": ([("Clip", ["m", "a", "b"], {})], 32),
    "PRelu": ([("Sub", ["m", "b"], {}), ("PRelu", ["h0", "a"], {})], 32),
    "Split": ([("Split", ["m"], {"axis": 1, "num_outputs": 2}), ("Sum", ["h0", "h0b", "h0"], {})], 16),
    "Min": ([("Neg", ["m"], {}), ("Min", ["m", "h0", "a"], {})], 32),
    "Gather": ([("Gather", ["m", "places"], {"axis": 1})], 48),
    "GlobalMaxPool": ([("GlobalMaxPool", ["m"], {})], 2),
    "MaxPool": ([("Relu", ["m"], {}), ("MaxPool", ["h0"], {"kernel_shape": [3, 3], "pads": [1] * 4})], 32),
    "Concat": ([("Concat", ["m", "ones"], {"axis": 1})], 48),
    "MatMul": ([("MatMul", ["m", "square"], {})], 32),
}  # fmt: skip


def _written(path: Path, head: str, batch: int | str) -> Path:
    """An ONNX file: (x − mean) / std, the head, a reshape by stated sizes, two linear layers with rectifiers."""
    onnx = pytest.importorskip("onnx")
    helper, draw = onnx.helper, np.random.default_rng(0)
    parts, left = HEADS[head]
    weights = {
        "mean": np.full((1, 2, 1, 1), 0.4), "std": np.full((1, 2, 1, 1), 0.3), "a": np.array(0.2), "b": np.array(0.7),
        "ones": np.ones((1, 1, 4, 4)), "square": draw.normal(size=(4, 4)), "W": draw.normal(size=(left, 12)) / 4,
        "V": draw.normal(size=(12, 3)), "c": draw.normal(size=12) / 4,
    }  # fmt: skip
    nodes = [helper.make_node("Sub", ["x", "mean"], ["d"]), helper.make_node("Div", ["d", "std"], ["m"])]
    for place, (kind, reads, values) in enumerate(parts):
        made = [f"h{place}", f"h{place}b"] if kind == "Split" else [f"h{place}"]
        nodes.append(helper.make_node(kind, reads, made, **values))
    nodes += [
        helper.make_node("Reshape", [f"h{len(parts) - 1}", "sizes"], ["flat"]),
        helper.make_node("MatMul", ["flat", "W"], ["p"]), helper.make_node("Add", ["p", "c"], ["q"]),
        helper.make_node("Relu", ["q"], ["r"]), helper.make_node("Gemm", ["r", "V", "zero"], ["y"]),
    ]  # fmt: skip
    sizes = np.array([1 if batch == 1 else -1, left])
    held = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    held.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "zero"))
    held += [onnx.numpy_helper.from_array(sizes, "sizes"), onnx.numpy_helper.from_array(np.array([1, 0, 1]), "places")]
    given, result = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, *shape])
        for name, shape in (("x", (2, 4, 4)), ("y", (3,)))
    )
    graph = helper.make_graph(nodes, "g", [given], [result], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def _hold(model: nn.Module, shape: tuple[int, ...], form: Form | None = None) -> None:
    """No sample around any of four points leaves the bounds of its margins, loose or tight."""
    torch.manual_seed(0)
    x, threat = torch.rand(4, *shape), ThreatModel("Linf", 0.08)
    with Target(model, form=form or Form()) as target, torch.no_grad():
        network, y = captured(target, x), target.scores(x).argmax(1)
        region = Region.around(x, threat)
        alone = [region.rows(slice(row, row + 1)) for row in range(4)]
        tight = [margins(network, r, intervals(network, r, tighten=True), y[i : i + 1]) for i, r in enumerate(alone)]
        lowest = torch.maximum(torch.cat(tight), margins(network, region, intervals(network, region, tighten=False), y))
        for _ in range(60):
            tried = threat.project(x + threat.eps * (2 * torch.rand_like(x) - 1).sign(), x)
            scores = network(tried.double())
            assert (lowest <= torch.einsum("dsk,dk->ds", differences(scores.shape[1], y), scores)).all()
            assert torch.equal(scores.argmax(1), target.scores(tried).argmax(1))


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("head", HEADS)
def test_onnx_graphs_that_state_their_sizes_are_bounded(head: str, batch: int | str, tmp_path: Path) -> None:
    _hold(load_model(str(_written(tmp_path / "model.onnx", head, batch))).module, (2, 4, 4))


class _PerPixel(nn.Module):
    """A linear layer on the last of four axes, which torch computes on all pixels of all points at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel, self.last = nn.Linear(2, 5), nn.Linear(80, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.pixel(x.permute(0, 2, 3, 1))).reshape(len(x), -1)
        scores: Tensor = self.last(h)
        return scores


def test_a_linear_layer_on_the_last_of_many_axes_is_bounded() -> None:
    torch.manual_seed(0)
    _hold(_PerPixel(), (2, 4, 4))


@pytest.mark.parametrize("kind", ["one-logit", "one-probability"])
def test_a_single_output_is_bounded(kind: str) -> None:
    torch.manual_seed(0)
    last = [nn.Sigmoid()] if kind == "one-probability" else [nn.Flatten(0)]
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 1), *last)
    _hold(model, (6,), Form(outputs=kind))  # type: ignore[arg-type]


def test_a_trace_for_one_point_and_a_program_are_bounded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = _PerPixel().eval(), torch.rand(1, 2, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, x).save(str(tmp_path / "model.pt"))
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    _hold(load_model(str(tmp_path / "model.pt")).module, (2, 4, 4), Form(most=1))
    _hold(load_model(str(tmp_path / "model.pt2")).module, (2, 4, 4))
