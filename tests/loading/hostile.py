"""Writers of exported programs and ONNX files that mean harm; none executes anything."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Node = dict[str, Any]


def tensor(name: str = "x") -> dict[str, Any]:
    """An argument that is a value."""
    return {"as_tensor": {"name": name}}


def node(target: str, *arguments: dict[str, Any], out: str | None = "y", **keywords: dict[str, Any]) -> Node:
    """An operation of an exported program; `target` without `torch.ops.aten.` unless it has a prefix of its own."""
    prefix = "" if target.startswith(("_operator", "torch", "math", "os")) else "torch.ops.aten."
    given = [{"name": f"a{number}", "arg": argument, "kind": 1} for number, argument in enumerate(arguments)]
    given += [{"name": name, "arg": argument, "kind": 2} for name, argument in keywords.items()]
    outputs = [] if out is None else [tensor(out)]
    return {"target": prefix + target, "inputs": given, "outputs": outputs, "metadata": {}}


def ints(*values: int) -> dict[str, Any]:
    """An argument that is a list of whole numbers."""
    return {"as_ints": list(values)}


def size(value: Any) -> dict[str, Any]:
    """A size, or an argument that is a whole number."""
    return {"as_int": value}


def number(name: str) -> dict[str, Any]:
    """An argument that is a number computed before."""
    return {"as_sym_int": {"as_name": name}}


def sized(target: str, *arguments: dict[str, Any], out: str) -> Node:
    """An operation that makes a number."""
    return {**node(target, *arguments, out=None), "outputs": [number(out)]}


def program(
    nodes: Sequence[Node], shape: Any = (2, 4), *, result: str = "y", weights: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Any]:
    """The description of a program with input `x`; weights by name with their shapes, all float32."""
    specs: list[Any] = [
        {"parameter": {"arg": {"name": name}, "parameter_name": name.replace("p_", "")}} for name in weights or {}
    ]
    sizes = [{"as_int": length} if length is not None else {"as_expr": {"expr_str": "s0"}} for length in shape]
    return {
        "schema_version": {"major": 8, "minor": 8},
        "graph_module": {
            "graph": {"nodes": list(nodes), "tensor_values": {"x": {"sizes": sizes, "dtype": 7}}},
            "signature": {
                "input_specs": [*specs, {"user_input": {"arg": tensor()}}],
                "output_specs": [{"user_output": {"arg": tensor(result)}}],
            },
        },
    }


def archive(stated: Any, weights: Mapping[str, Sequence[int]] | None = None, raw: bytes | None = None) -> bytes:
    """A .pt2 archive of a program; weights are zeros."""
    buffer = io.BytesIO()
    config: dict[str, Any] = {}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/archive_format", "pt2")
        file.writestr("m/models/model.json", raw if raw is not None else json.dumps(stated))
        for name, shape in (weights or {}).items():
            count = 1
            strides: list[dict[str, Any]] = []
            for length in reversed(shape):
                strides.insert(0, size(count))
                count *= length
            config[name.replace("p_", "")] = {
                "path_name": name, "is_param": True, "use_pickle": False,
                "tensor_meta": {"sizes": [size(s) for s in shape], "strides": strides, "dtype": 7,
                                "storage_offset": size(0), "requires_grad": False},
            }  # fmt: skip
            file.writestr(f"m/data/weights/{name}", bytes(4 * count))
        file.writestr("m/data/weights/model_weights_config.json", json.dumps({"config": config}))
    return buffer.getvalue()


def write(path: Path, nodes: Sequence[Node], shape: Any = (2, 4), *, result: str = "y",
          weights: Mapping[str, Sequence[int]] | None = None) -> Path:  # fmt: skip
    """Write a program into a file."""
    path.write_bytes(archive(program(nodes, shape, result=result, weights=weights), weights))
    return path
