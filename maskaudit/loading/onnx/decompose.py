"""Graphs with fewer kinds of nodes: operators by their definitions, branches and loops with constant conditions.

The operator specification defines many operators by others; the package `onnx` holds these definitions. What such a
node is replaced by bears its name, so that a trace still says where in the file it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from maskaudit.loading.graph_limits import MAX_NODES, check_count, rehearsing
from maskaudit.loading.onnx.attributes import DTYPES, Attributes
from maskaudit.loading.onnx.ops import OPS

#: Definitions within definitions.
MAX_ROUNDS = 8
#: Numbers in a constant that conditions are computed from.
MAX_COMPUTED = 4_096
Tensors = Callable[[Any], Tensor]


def spelt_out(onnx: Any, model: Any, opset: int, tensor: Tensors, attribute: Tensors) -> Any:
    """A copy of the model without the nodes that can be replaced; the model itself where there are none.

    Args:
        tensor, attribute: read a TensorProto, and the value of an attribute.

    Raises:
        TooLarge: when it has too many nodes in the end.
        ValueError: where a definition does not fit its node.
    """
    if not any(replaces(onnx, node) for node in model.graph.node):
        return model
    given, model = model, onnx.ModelProto()
    model.CopyFrom(given)
    graph = model.graph
    for number in range(MAX_ROUNDS):
        known, nodes, replaced = _Known(onnx, model, opset, tensor, attribute), list[Any](), False
        for place, node in enumerate(graph.node):
            instead = _instead(onnx, node, known, f"{number}_{place}") if replaces(onnx, node) else None
            replaced |= instead is not None
            nodes += [node] if instead is None else instead
            check_count(len(nodes), MAX_NODES, "operators")
        del graph.node[:]
        graph.node.extend(nodes)
        if not replaced or not any(replaces(onnx, node) for node in graph.node):
            break
    return model


def replaces(onnx: Any, node: Any) -> bool:
    """Whether a node may be replaced by others: no operator of the table, but a definition, branch or scan."""
    if node.domain not in ("", "ai.onnx") or node.op_type in OPS:
        return False
    return node.op_type in ("If", "Scan") or _is_defined(onnx, node.op_type)


def _is_defined(onnx: Any, operator: str) -> bool:
    if not onnx.defs.has(operator):
        return False
    schema = onnx.defs.get_schema(operator)
    return bool(schema.has_function or schema.has_context_dependent_function)


class _Known:
    """What is known of the values of a graph before it runs: types, and constants or tensors that only have a shape."""

    def __init__(self, onnx: Any, model: Any, opset: int, tensor: Tensors, attribute: Tensors) -> None:
        self.onnx, self.opset, self.attribute = onnx, opset, attribute
        graph = model.graph
        stated = {item.name for item in (*graph.input, *graph.value_info)}
        for item in graph.initializer:
            if item.name not in stated:  # definitions may depend on the shape of a weight
                graph.value_info.append(onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)))
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.types = {item.name: item.type for item in (*inferred.input, *inferred.value_info, *inferred.output)}
        self.values: dict[str, Tensor] = {item.name: _sketch(tensor(item)) for item in graph.initializer}
        for item in graph.input:
            if item.name not in self.values and (sizes := _stated(item.type)) is not None:
                dtype = DTYPES.get(item.type.tensor_type.elem_type, torch.float32)
                self.values[item.name] = torch.empty(sizes, dtype=dtype, device="meta")
        for node in graph.node:
            self._run(node)

    def _run(self, node: Any) -> None:
        """Note what a node makes of what is known, where its operator is in the table."""
        if node.op_type not in OPS or any(name and name not in self.values for name in node.input):
            return
        values = {item.name: self.attribute(item) for item in node.attribute}
        inputs = [self.values[name] if name else None for name in node.input]
        if any(item is not None and item.is_meta for item in inputs) and node.op_type not in ("Shape", "Size"):
            inputs = [item if item is None or item.numel() <= MAX_COMPUTED else item.to("meta") for item in inputs]
        try:
            with rehearsing():
                found = OPS[node.op_type](Attributes(self.opset, len(node.output), values), *inputs)
        except Exception:  # whatever the operation says; the rehearsal of the program says it again
            return
        results = found if isinstance(found, (tuple, list)) else [found]
        self.values.update((name, _sketch(item)) for name, item in zip(node.output, results, strict=False) if name)

    def constant(self, name: str) -> Tensor | None:
        """A value that does not depend on the input; None for others, and where it is not known."""
        found = self.values.get(name)
        return None if found is None or found.is_meta else found

    def sizes(self, name: str) -> list[int] | None:
        """The shape of a value, where all of it is known."""
        return list(self.values[name].shape) if name in self.values else _stated(self.types.get(name))


def _sketch(value: Tensor) -> Tensor:
    """A small constant as it is, anything else without its data."""
    return value if value.is_meta or value.numel() <= MAX_COMPUTED else value.to("meta")


def _stated(kind: Any) -> list[int] | None:
    """The shape that a type states, where it states all of it."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    sizes = [size.dim_value for size in kind.tensor_type.shape.dim if size.HasField("dim_value")]
    return sizes if len(sizes) == len(kind.tensor_type.shape.dim) else None


def _instead(onnx: Any, node: Any, known: _Known, number: str) -> list[Any] | None:
    """What a node is replaced by; None where nothing is known that says the same."""
    prefix = f"{node.name or node.op_type}_{number}"
    if node.op_type == "If":
        return _branch(onnx, node, known, prefix)
    if node.op_type == "Scan":
        return _unrolled(onnx, node, known, prefix)
    return _defined(onnx, node, known, prefix)


def _branch(onnx: Any, node: Any, known: _Known, prefix: str) -> list[Any] | None:
    condition = known.constant(node.input[0])
    if condition is None:
        return None
    wanted = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    body = next(item.g for item in node.attribute if item.name == wanted)
    return _inlined(onnx, body, {}, dict(zip((item.name for item in body.output), node.output, strict=True)), prefix)


def _inlined(onnx: Any, body: Any, given: Mapping[str, str], wanted: Mapping[str, str], prefix: str) -> list[Any]:
    """The nodes of a sub-graph as nodes of the graph around it.

    Args:
        given: names outside for its inputs; wanted: names outside for its results.
    """
    made = {name for node in body.node for name in node.output if name}
    own = {**{name: f"{prefix}/{name}" for name in made}, **given}
    weights = []
    for item in body.initializer:
        own[item.name] = f"{prefix}/{item.name}"
        weights.append(onnx.helper.make_node("Constant", [], [own[item.name]], f"{prefix}/{item.name}", value=item))
    nodes = [*weights, *(_renamed(onnx, node, own, prefix) for node in body.node)]
    return [*nodes, *(onnx.helper.make_node("Identity", [own.get(name, name)], [outside], f"{prefix}/{name}")
                      for name, outside in wanted.items() if outside)]  # fmt: skip


def _renamed(onnx: Any, node: Any, own: Mapping[str, str], prefix: str) -> Any:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{prefix}/{node.name or node.op_type}"
    for names in (copy.input, copy.output):
        renamed = [own.get(name, name) for name in names]
        del names[:]
        names.extend(renamed)
    for item in copy.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            for inner in item.g.node:
                inner.CopyFrom(_renamed(onnx, inner, own, prefix))
            for result in item.g.output:
                result.name = own.get(result.name, result.name)
    return copy


def _unrolled(onnx: Any, node: Any, known: _Known, prefix: str) -> list[Any] | None:
    """A Scan over sequences of known length, one copy of its body for each step."""
    body = next(item.g for item in node.attribute if item.name == "body")
    values: dict[str, Any] = {item.name: known.attribute(item) for item in node.attribute if item.name != "body"}
    count = values["num_scan_inputs"]
    states = len(node.input) - count
    outputs = len(node.output) - states
    axes = values.get("scan_input_axes", [0] * count)
    sizes = [known.sizes(name) for name in node.input[states:]]
    lengths = {size[axis] for size, axis in zip(sizes, axes, strict=True) if size is not None}
    if known.opset < 9 or any(size is None for size in sizes) or len(lengths) != 1:
        return None
    (steps,) = lengths
    check_count(steps * len(body.node), MAX_NODES, "operators")
    nodes: list[Any] = []

    def make(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(onnx.helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(name: str, numbers: list[int]) -> str:
        held = onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(numbers)], numbers)
        return make("Constant", [], name, value=held)

    state = list(node.input[:states])
    seen: list[list[str]] = [[] for _ in range(outputs)]
    for step in range(steps):
        here = f"{prefix}/{step}"
        inputs = []
        for i, (name, axis) in enumerate(zip(node.input[states:], axes, strict=True)):
            backwards = values.get("scan_input_directions", [0] * count)[i]
            place = constant(f"{here}/place{i}", [steps - 1 - step if backwards else step])
            part = make("Gather", [name, place], f"{here}/part{i}", axis=axis)
            if known.opset >= 13:
                inputs.append(make("Squeeze", [part, constant(f"{here}/axis{i}", [axis])], f"{here}/input{i}"))
            else:
                inputs.append(make("Squeeze", [part], f"{here}/input{i}", axes=[axis]))
        given = dict(zip((item.name for item in body.input), [*state, *inputs], strict=True))
        results = [f"{here}/result{i}" for i in range(len(body.output))]
        nodes += _inlined(onnx, body, given, dict(zip((o.name for o in body.output), results, strict=True)), here)
        state = results[:states]
        for row, name in zip(seen, results[states:], strict=True):
            row.append(name)
    for name, outside in zip(state, node.output[:states], strict=True):
        if outside:
            make("Identity", [name], outside)
    for i, (row, outside) in enumerate(zip(seen, node.output[states:], strict=True)):
        axis = values.get("scan_output_axes", [0] * outputs)[i]
        if values.get("scan_output_directions", [0] * outputs)[i]:
            row = row[::-1]
        wide = [make("Unsqueeze", [name, constant(f"{name}/axis", [axis])], f"{name}/wide") if known.opset >= 13
                else make("Unsqueeze", [name], f"{name}/wide", axes=[axis]) for name in row]  # fmt: skip
        if outside:
            make("Concat", wide, outside, axis=axis)
    return nodes


def _defined(onnx: Any, node: Any, known: _Known, prefix: str) -> list[Any] | None:
    function = _definition(onnx, node, known)
    if function is None:
        return None
    inputs = dict.fromkeys(function.input, "") | dict(zip(function.input, node.input, strict=False))
    outputs = dict(zip(function.output, node.output, strict=False))
    defaults = {name: item.default_value for name, item in onnx.defs.get_schema(node.op_type).attributes.items()
                if item.default_value.name}  # fmt: skip
    given = defaults | {item.name: item for item in node.attribute}
    body = onnx.GraphProto()
    body.node.extend(function.node)
    for inner in body.node:
        _fill(onnx, inner, given)
    body.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
    return _inlined(onnx, body, inputs, outputs, prefix)


def _definition(onnx: Any, node: Any, known: _Known) -> Any:
    schema = onnx.defs.get_schema(node.op_type, known.opset)
    function = onnx.FunctionProto()
    try:
        if schema.has_context_dependent_function:
            version = max(v for v in schema.context_dependent_function_opset_versions if v <= known.opset)
            types = [known.types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
            content = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), types)
        else:
            version = max(v for v in schema.function_opset_versions if v <= known.opset)
            content = schema.get_function_with_opset_version(version)
    except (ValueError, RuntimeError, AttributeError):  # no definition for these types, or in this version of onnx
        return None
    function.ParseFromString(content)
    return function if function.node else None


def _fill(onnx: Any, node: Any, given: Mapping[str, Any]) -> None:
    """Attributes that a definition takes from its node."""
    kept = []
    for item in node.attribute:
        if item.ref_attr_name:
            if item.ref_attr_name not in given:
                continue
            copy = onnx.AttributeProto()
            copy.CopyFrom(given[item.ref_attr_name])
            copy.name = item.name
            item = copy
        elif item.type == onnx.AttributeProto.GRAPH:
            for inner in item.g.node:
                _fill(onnx, inner, given)
        kept.append(item)
    del node.attribute[:]
    node.attribute.extend(kept)
