"""TorchScript, exported programs and converted ONNX files: the culprit's module and source line survive."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskaudit.sources import load_model
from maskaudit.target import Target
from maskaudit.target.scores import detect_outputs
from maskaudit.trace import Trace, trace_model
from maskaudit.trace.scope import innermost_user_line
from maskaudit.trace.scripted import ScriptedGraph, module_path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Points = tuple[Tensor, Tensor]


class Quantise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 3) / 3


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        inside = x * 1.0
        return inside.detach()


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 8).to(torch.int64).to(torch.float32) / 8


class Looped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.relu(x)
        return torch.floor(x * 4) / 4


class Model(nn.Module):
    """`net(front(x))`, the scores as the softmax of `scale` times them if it is not 0."""

    def __init__(self, front: nn.Module, net: nn.Module, scale: float = 0.0) -> None:
        super().__init__()
        self.front, self.net, self.scale = front, net, scale

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(self.front(x))
        if self.scale == 0.0:
            return scores
        return torch.softmax(scores * self.scale, dim=1)


def scripted(model: nn.Module) -> nn.Module:
    return reloaded(torch.jit.script(model))


def traced(model: nn.Module) -> nn.Module:
    return reloaded(torch.jit.trace(model, torch.rand(2, 1, 8, 8)))


def reloaded(module: torch.jit.ScriptModule) -> nn.Module:
    stream = io.BytesIO()
    torch.jit.save(module, stream)
    stream.seek(0)
    return torch.jit.load(stream)


def program_of(model: nn.Module) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(model, (torch.rand(3, 1, 8, 8),), dynamic_shapes=({0: batch},))


def exported(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.export.save(program_of(model), stream)
    stream.seek(0)
    return torch.export.load(stream).module()


def trace(model: nn.Module, points: Points) -> Trace:
    target = Target(model)
    with torch.no_grad():
        target.outputs = detect_outputs(model(points[0]))
    return trace_model(target, *points, eps=0.2)


FORMATS: dict[str, Callable[[nn.Module], nn.Module]] = {"script": scripted, "trace": traced, "pt2": exported}
#: Mechanism, module, op and a fragment of the line.
CASES: dict[str, tuple[Callable[[nn.Module], nn.Module], str, str, str, str]] = {
    "quantised": (lambda n: Model(Quantise(), n), "shattered", "front", "round", "torch.round(x * 3)"),
    "looped": (lambda n: Model(Looped(), n), "shattered", "front", "floor", "torch.floor(x * 4)"),
    "softmax": (lambda n: Model(nn.Identity(), n, 100.0), "logit-scale", "", "softmax", "torch.softmax(scores"),
    "cast": (lambda n: Model(Cast(), n), "cut", "front", "to", "(x * 8).to("),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMATS)
def test_the_culprit_of_a_file(form: str, case: str, net: nn.Module, points: Points) -> None:
    build, mechanism, module, op, fragment = CASES[case]
    culprit = trace(FORMATS[form](build(net).eval()), points).culprits[0]
    where = culprit.location
    assert (culprit.mechanism, where.module) == (mechanism, module)
    assert op in where.op
    assert where.file == "tests/trace/test_formats.py"
    assert fragment in Path(where.file).read_text().splitlines()[int(where.line or 0) - 1]


@pytest.mark.parametrize("case", ["quantised", "softmax"])
def test_a_file_read_without_running_its_code(case: str, net: nn.Module, points: Points, tmp_path: Path) -> None:
    build, mechanism, module, op, fragment = CASES[case]
    path = tmp_path / "model.pt2"
    torch.export.save(program_of(build(net).eval()), path)
    culprit = trace(load_model(str(path)).module, points).culprits[0]  # type: ignore[arg-type]
    where = culprit.location
    assert (culprit.mechanism, where.op) == (mechanism, op)
    assert where.module.split(".")[0] == (module or op)  # every op is a module of its own
    assert fragment in Path(str(where.file)).read_text().splitlines()[int(where.line or 0) - 1]


@pytest.mark.parametrize("case", ["quantised", "softmax"])
def test_a_converted_onnx_file(case: str, net: nn.Module, points: Points, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    build, mechanism, module, op, _ = CASES[case]
    path = tmp_path / "model.onnx"
    torch.onnx.export(build(net).eval(), (torch.rand(3, 1, 8, 8),), str(path), dynamo=False,
                      input_names=["input"], dynamic_axes={"input": {0: "batch"}})  # fmt: skip
    culprit = trace(load_model(str(path)).module, points).culprits[0]  # type: ignore[arg-type]
    expected = "/" + "/".join(part for part in (module, op.capitalize()) if part)
    assert (culprit.mechanism, culprit.location.module) == (mechanism, expected)
    assert culprit.location.file is None


@pytest.mark.parametrize("form", ["script", "pt2"])
def test_a_detach_inside_a_file(form: str, net: nn.Module, points: Points) -> None:
    culprit = trace(FORMATS[form](Model(Cut(), net).eval()), points).culprits[0]
    assert (culprit.mechanism, culprit.location.module) == ("cut", "front")
    assert (culprit.location.file, culprit.confidence) == ("tests/trace/test_formats.py", "high")


@pytest.mark.parametrize("form", FORMATS)
def test_a_healthy_file(form: str, net: nn.Module, points: Points) -> None:
    found = trace(FORMATS[form](Model(nn.Identity(), net).eval()), points)
    assert found.culprits == ()
    layers = {op.location.module for op in found.ops}
    assert {f"net.{name}" for name, layer in net.named_children() if list(layer.parameters())} <= layers


def test_a_scripted_part_of_an_eager_model(net: nn.Module, points: Points) -> None:
    found = trace(nn.Sequential(scripted(Model(Quantise(), nn.Identity())), net).eval(), points)
    where = found.culprits[0].location
    assert (where.module, where.file) == ("0.front", "tests/trace/test_formats.py")


def test_conditions_and_methods_of_scripted_modules() -> None:
    graph = ScriptedGraph(torch.jit.script(Model(Cut(), nn.Identity())), "outer")
    assert graph.cut() is not None
    assert str(graph.cut().module) == "outer.front"  # type: ignore[union-attr]
    assert ScriptedGraph(torch.jit.script(Model(Quantise(), nn.Identity()))).cut() is None


@pytest.mark.parametrize(
    ("hierarchy", "path"),
    [("", ""), ("net(Sequential).0(Conv2d).SELF(Conv2d)", "net.0"), ("a(A).UNKNOWN_INSTANCE(UNKNOWN_TYPE)", "a")],
)
def test_module_paths(hierarchy: str, path: str) -> None:
    assert module_path(hierarchy) == path


@pytest.mark.parametrize(
    ("trace", "place"),
    [
        ("", (None, None)),
        ('File "/x/site-packages/torch/nn/functional.py", line 5, in relu', (None, None)),
        (
            'File "/m/net.py", line 7, in forward\n  y\nFile "/x/site-packages/torch/a.py", line 1, in f',
            ("/m/net.py", 7),
        ),
        ("/x/site-packages/torch/nn/f.py(3): relu\n/m/net.py(9): forward\n/m/main.py(1): <module>", ("/m/main.py", 1)),
    ],
)
def test_printed_stacks(trace: str, place: tuple[str | None, int | None]) -> None:
    assert innermost_user_line(trace) == place


def test_innermost_first() -> None:
    stack = "/x/site-packages/torch/nn/f.py(3): relu\n/m/net.py(9): forward\n/m/main.py(1): <module>"
    assert innermost_user_line(stack, innermost_first=True) == ("/m/net.py", 9)
