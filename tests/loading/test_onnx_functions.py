"""Functions that an ONNX model defines itself: put in place of their calls, or refused before they grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from maskaudit.errors import InputError
from maskaudit.loading.interface import ModelFile, Options

onnx = pytest.importorskip("onnx")
onnxscript = pytest.importorskip("onnxscript")

from onnxscript import FLOAT, script  # noqa: E402
from onnxscript import opset18 as op  # noqa: E402

from maskaudit.loading.onnx import reader  # noqa: E402

HELPER: Any = onnx.helper
OWN = onnxscript.values.Opset("own", 1)


@script(OWN, default_opset=op)  # type: ignore[untyped-decorator]
def swish(x, beta: float):  # type: ignore[no-untyped-def]
    return x * op.Sigmoid(op.Constant(value_float=beta) * x)


@script(OWN, default_opset=op)  # type: ignore[untyped-decorator]
def block(x, w):  # type: ignore[no-untyped-def]
    return swish(op.MatMul(x, w), beta=1.5)


@script(default_opset=op)  # type: ignore[untyped-decorator]
def network(x: FLOAT[None, 3], w: FLOAT[3, 3]) -> FLOAT[None, 3]:
    return block(block(x, w), w)


def call(name: str, *values: str) -> Any:
    return HELPER.make_node(name, values[:-1], values[-1:], domain="own")


def function(name: str, *nodes: Any, opset: int = 18, domain: str = "own") -> Any:
    opsets = [HELPER.make_opsetid("", opset), HELPER.make_opsetid("own", 1)]
    return HELPER.make_function(domain, name, ["a"], ["b"], list(nodes), opsets)


def model(called: str, *functions: Any) -> bytes:
    value = HELPER.make_tensor_value_info
    graph = HELPER.make_graph([call(called, "x", "y")], "g", [value("x", 1, [None, 3])], [value("y", 1, None)])
    opsets = [HELPER.make_opsetid("", 18), HELPER.make_opsetid("own", 1)]
    made = HELPER.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    content: bytes = made.SerializeToString()
    return content


def read(content: bytes) -> torch.nn.Module:
    return reader.read(ModelFile("f.onnx", content), Options()).module


def test_functions_within_functions() -> None:
    stated = network.to_model_proto()
    stated.ir_version = 10
    w = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    del stated.graph.input[1]
    stated.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    assert {item.name for item in stated.functions} == {"block", "swish"}
    x = torch.rand(5, 3, requires_grad=True)
    found = read(stated.SerializeToString())(x)
    expected = x
    for _ in range(2):
        expected = expected @ torch.from_numpy(w)
        expected = expected * torch.sigmoid(1.5 * expected)
    assert torch.allclose(found, expected, atol=1e-6)
    (grad,) = torch.autograd.grad(found[:, 0].sum(), x)
    assert bool((grad != 0).any())


RELU = HELPER.make_node("Relu", ["a"], ["b"])


def doubling(levels: int) -> list[Any]:
    """Functions that each call the one before twice."""
    return [function("f0", RELU), *(
        function(f"f{i}", call(f"f{i - 1}", "a", "c"), call(f"f{i - 1}", "c", "b")) for i in range(1, levels)
    )]  # fmt: skip


def chained(levels: int) -> list[Any]:
    return [function("f0", RELU), *(function(f"f{i}", call(f"f{i - 1}", "a", "b")) for i in range(1, levels))]


REFUSED = {
    "calls itself": (model("f", function("f", call("f", "a", "b"))), "function f calls itself"),
    "in a circle": (
        model("f", function("f", call("g", "a", "b")), function("g", call("f", "a", "b"))), "function f calls itself"
    ),
    "doubles": (model("f59", *doubling(60)), "come to more than 10000 operators"),
    "deep": (model("f2999", *chained(3000)), "call each other 100 deep"),
    "twice": (model("f", function("f", RELU), function("f", RELU)), "two of its functions have one name"),
    "an operator's name": (
        model("f", function("f", RELU), function("Relu", HELPER.make_node("Neg", ["a"], ["b"]), domain="")),
        "has the name of an operator",
    ),
    "other operators": (model("f", function("f", RELU, opset=13)), "another version of the operators"),
    "not there": (model("g", function("f", RELU)), "operators that are not converted: own.g"),
    "from nowhere": (model("f", function("f", HELPER.make_node("Relu", ["n"], ["b"]))), "nothing before it provides"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_functions_that_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(content)


def test_few_calls_of_many_functions() -> None:
    assert read(model("f9", *doubling(10)))(torch.tensor([[-1.0, 0.0, 2.0]])).tolist() == [[0.0, 0.0, 2.0]]
    assert torch.equal(read(model("f90", *chained(91)))(torch.ones(1, 3)), torch.ones(1, 3))
