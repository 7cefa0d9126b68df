"""ONNX files that mean harm: refused at load, in one sentence, before anything is computed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskaudit.errors import InputError
from maskaudit.loading.onnx.unpacked_size import count_fields
from maskaudit.sources import load_model

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
HELPER = importlib.import_module("onnx.helper")
LEAST = -(2**63)


def make(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return HELPER.make_node(kind, inputs, outputs, **attributes)


def model(nodes: list[Any], weights: dict[str, Any] | None = None, shape: Any = (None, 4), opset: int = 21) -> bytes:
    value = HELPER.make_tensor_value_info
    held = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = HELPER.make_graph(nodes, "g", [value("x", 1, shape)], [value("y", 1, None)], held)
    stated = HELPER.make_model(graph, opset_imports=[HELPER.make_opsetid("", opset)], ir_version=10)
    content: bytes = stated.SerializeToString()
    return content


def branch(operators: int) -> Any:
    """A graph for an attribute."""
    value = HELPER.make_tensor_value_info("y", 1, None)
    return HELPER.make_graph([make("Relu", ["x"], ["y"])] * operators, "b", [], [value])


def sizes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


SIZE = "are allowed|overflow|Storage size|would have to hold"
HUGE = 10**12
Crafted = tuple[Callable[[], bytes], str]

CRAFTED: dict[str, Crafted] = {
    "constant of a shape": (lambda: model([make("ConstantOfShape", ["s"], ["y"])], {"s": sizes(HUGE)}), SIZE),
    "range": (lambda: model([make("Range", ["a", "s", "b"], ["y"])],
                            {"a": np.int64(0), "s": np.int64(HUGE), "b": np.int64(1)}), SIZE),
    "expand": (lambda: model([make("Expand", ["x", "s"], ["y"])], {"s": sizes(HUGE, 1, 4)}), SIZE),
    "tile": (lambda: model([make("Tile", ["x", "s"], ["y"])], {"s": sizes(10**6, 10**6)}), SIZE),
    "pad": (lambda: model([make("Pad", ["x", "s"], ["y"])], {"s": sizes(0, 0, 0, HUGE)}), SIZE),
    "one-hot": (lambda: model([make("OneHot", ["x", "s", "v"], ["y"])],
                              {"s": np.int64(HUGE), "v": np.zeros(2, np.float32)}), SIZE),
    "resize": (lambda: model([make("Resize", ["x", "", "", "s"], ["y"])], {"s": sizes(1, 3, 10**6, 10**6)},
                             (1, 3, 8, 8)), SIZE),
    "a side by weights": (lambda: model([make("Resize", ["x", "", "", "s"], ["y"], mode="linear")],
                                        {"s": sizes(1, 3, 16_385)}, (1, 3, 8)), "larger than what is read"),
    "weights of a side": (lambda: model([make("Resize", ["x", "", "", "s"], ["y"], mode="linear")],
                                        {"s": sizes(1, 3, 16_384)}, (1, 3, 257)), "larger than what is read"),
    "steps of a recurrent layer": (lambda: model([make("RNN", ["x", "w", "r"], ["y"], hidden_size=2)],
                                                 {"w": np.zeros((1, 2, 3), np.float32),
                                                  "r": np.zeros((1, 2, 2), np.float32)}, (4_097, 1, 3)),
                                   "a sequence of 4097 steps"),
    "window": (lambda: model([make("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[2**40] * 4)], {}, (1, 3, 8, 8)),
               "do not fit|cannot be converted"),
    "no step": (lambda: model([make("Conv", ["x", "w"], ["y"], strides=[0, 0])],
                              {"w": np.zeros((4, 3, 3, 3), np.float32)}, (1, 3, 8, 8)), "do not fit"),
    "pieces": (lambda: model([make("Expand", ["x", "s"], ["z"]),
                              make("Split", ["z"], ["y"], axis=0, num_outputs=10**7)], {"s": sizes(10**7, 1, 4)}),
               "do not fit|cannot be converted"),
    "a size from values": (lambda: model([make("Cast", ["x"], ["i"], to=7), make("ConstantOfShape", ["i"], ["y"])]),
                           "depends on the values"),
    "division": (lambda: model([make("Div", ["a", "b"], ["y"])], {"a": sizes(LEAST), "b": sizes(-1)}), "overflows"),
    "remainder": (lambda: model([make("Mod", ["a", "b"], ["y"])], {"a": sizes(LEAST), "b": sizes(-1)}), "overflows"),
    "dots": (lambda: model([make("Relu", ["x"], ["y"], name=".".join("a" * 3000))]), "dots"),
    "operators": (lambda: model([make("Relu", ["x"], ["y"])] * 20_000), "20000 operators"),
    "operators of parts": (lambda: model([make("If", ["x"], ["y"], then_branch=branch(5_000),
                                               else_branch=branch(5_000))]), "10001 operators"),
    "a value made twice": (lambda: model([make("Relu", ["x"], ["y"]), make("Tanh", ["x"], ["y"])]), "made twice"),
    "a circle": (lambda: model([make("Relu", ["z"], ["y"]), make("Tanh", ["y"], ["z"])]), "nothing before it provides"),
    "strange attribute": (lambda: model([make("Relu", ["x"], ["y"], alpha=1.0)]), "attribute alpha"),
    "kind of attribute": (lambda: model([make("LeakyRelu", ["x"], ["y"], alpha="x")]), "attribute alpha"),
    "inputs": (lambda: model([make("Relu", ["x"] * 3, ["y"])]), "3 inputs"),
    "text": (lambda: model([make("Einsum", ["x"], ["y"], equation="a" * 10**6)]), "characters"),
    "graph inside": (lambda: model([make("If", ["x"], ["y"])]), "not converted: If"),
    "many points": (lambda: model([make("Relu", ["x"], ["y"])], {}, (50_000_000, 4)), "its input"),
    "very many points": (lambda: model([make("Relu", ["x"], ["y"])], {}, (10**12, 4)), "its input"),
    "no axes": (lambda: model([make("Relu", ["x"], ["y"])], {}, ()), "0 axes"),
    "a large point": (lambda: model([make("Relu", ["x"], ["y"])], {}, (None, 10**9)), "its input"),
    "sizes that grow": (lambda: model([make("Shape", ["x"], ["n0"], start=1),
                                       *(make("Mul", [f"n{i}", f"n{i}"], [f"n{i + 1}"]) for i in range(3)),
                                       make("ConstantOfShape", ["n3"], ["y"])], {}, (None, 100)), SIZE),
    "parts": (lambda: b"\x08\x0a" + nested(200), "cannot be converted"),
    "many small parts": (lambda: b"\x08\x0a" + part(7, b"\x0a\x00" * 1_100_000), "fields"),
}  # fmt: skip


def part(field: int, content: bytes) -> bytes:
    """A message inside a message."""
    length, encoded = len(content), b""
    while length > 127:
        encoded, length = encoded + bytes((length & 127 | 128,)), length >> 7
    return bytes((field << 3 | 2,)) + encoded + bytes((length,)) + content


def nested(levels: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on."""
    content = b""
    for _ in range(levels):
        content = part(1, part(5, part(6, content)))
    return part(7, content)


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_models_are_refused_at_load(name: str, tmp_path: Path) -> None:
    content, words = CRAFTED[name]
    (tmp_path / "m.onnx").write_bytes(content())
    with pytest.raises(InputError, match=words) as caught:
        load_model(str(tmp_path / "m.onnx"))
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


def test_a_division_that_traps_is_refused_at_load(tmp_path: Path) -> None:
    nodes = [make("Cast", ["x"], ["i"], to=7), make("Div", ["low", "i"], ["q"]), make("Cast", ["q"], ["y"], to=1)]
    (tmp_path / "m.onnx").write_bytes(model(nodes, {"low": sizes(*[LEAST] * 4)}))
    with pytest.raises(InputError, match=r"cannot be converted \(.*(overflows|ZeroDivision)"):
        load_model(str(tmp_path / "m.onnx"))  # it is tried on numbers of which most are 0 as whole ones


def outside(path: Path, shape: tuple[int, ...], **entries: object) -> None:
    """A model whose weights lie in `weights.bin`."""
    stated = onnx.load_model_from_string(
        model([make("MatMul", ["x", "w"], ["y"])], {"w": np.zeros((4, 3), np.float32)})
    )
    tensor = stated.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend(shape)
    tensor.raw_data, tensor.data_location = b"", onnx.TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    path.write_bytes(stated.SerializeToString())


OUTSIDE: dict[str, tuple[tuple[int, ...], dict[str, object], str]] = {
    "as large as the file": ((4, 327_680_000), {}, "more than 1073741824 bytes"),
    "less than the file": ((4, 3), {"length": 5 * 2**30}, "stated with"),
    "beyond its end": ((4, 3), {"offset": 6 * 2**30}, "end too early"),
    "before its start": ((4, 3), {"offset": -5}, "stated with"),
    "negative": ((-4, 3), {}, "stated with"),
    "no number": ((4, 3), {"length": "abc"}, "cannot be converted"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_weights_outside_are_read_up_to_a_limit(name: str, tmp_path: Path) -> None:
    shape, entries, words = OUTSIDE[name]
    with (tmp_path / "weights.bin").open("wb") as file:
        os.truncate(file.fileno(), 5 * 2**30)  # sparse: it takes no space
    outside(tmp_path / "m.onnx", shape, **entries)
    with pytest.raises(InputError, match=words):
        load_model(str(tmp_path / "m.onnx"))


def test_no_more_is_read_than_the_shape_says(tmp_path: Path) -> None:
    with (tmp_path / "weights.bin").open("wb") as file:
        os.truncate(file.fileno(), 5 * 2**30)
    outside(tmp_path / "m.onnx", (4, 3))
    assert load_model(str(tmp_path / "m.onnx")).parameters == 12


def test_fields_are_counted_as_they_are_encoded() -> None:
    content = model([make("Relu", ["x"], ["y"])])
    assert 10 < count_fields(content) < 40
    assert count_fields(content, limit=5) == 6
    with pytest.raises(ValueError, match="too early"):
        count_fields(content[:-1])
