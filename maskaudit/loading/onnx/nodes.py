"""Nodes of an ONNX graph against the operator specification, as the package `onnx` states it."""

from __future__ import annotations

import functools
from typing import Any

from maskaudit.loading.onnx.quantisers import SIGNATURES

#: Numbers of attribute types in ONNX (AttributeProto.AttributeType) that are read; graphs and their like are not.
ATTRIBUTE_TYPES = {1: "FLOAT", 2: "INT", 3: "STRING", 4: "TENSOR", 6: "FLOATS", 7: "INTS", 8: "STRINGS"}
#: Operators that hand on the sizes that are their first input.
HANDS_ON = frozenset(("Identity", "Gather", "Slice", "Unsqueeze", "Squeeze", "Cast", "Reshape"))
#: Operators that take sizes as an input other than the first, or make data of them.
TAKES_SIZES = frozenset(("Reshape", "Expand", "Tile", "ConstantOfShape", "Pad", "Slice", "Resize", "Split", "TopK"))


def check_node(onnx: Any, node: Any, opset: int) -> None:
    """A node has the inputs, outputs and attributes that its operator has in that version.

    Raises:
        ValueError: saying which it has not.
    """
    fewest, most, outputs, attributes = _signature(onnx, node.op_type, opset)
    if not fewest <= len(node.input) <= most or not 0 < len(node.output) <= outputs:
        raise ValueError(f"{node.op_type} has {len(node.input)} inputs and {len(node.output)} outputs")
    seen: set[str] = set()
    for attribute in node.attribute:
        wanted, kind = attributes.get(attribute.name), ATTRIBUTE_TYPES.get(attribute.type)
        if wanted is None or kind != wanted or attribute.name in seen or attribute.ref_attr_name:
            name = attribute.name[:40] if attribute.name.isprintable() else "with an odd name"
            raise ValueError(f"{node.op_type} has the attribute {name}, which it may not have like this")
        seen.add(attribute.name)


@functools.cache
def _signature(onnx: Any, operator: str, opset: int) -> tuple[int, int, int, dict[str, str]]:
    if operator in SIGNATURES:
        inputs, stated = SIGNATURES[operator]
        return inputs, inputs, 1, stated
    schema = onnx.defs.get_schema(operator, opset)
    attributes = {name: attribute.type.name for name, attribute in schema.attributes.items()}
    return schema.min_input, schema.max_input, schema.max_output, attributes


def is_steady(graph: Any) -> bool:
    """Whether no size shrinks as the batch grows: sizes that are calculated are only picked, joined and used."""
    sizes: set[str] = set()
    for node in graph.node:
        if node.op_type in ("Shape", "Size"):
            sizes.update(node.output)
        elif sizes.intersection(node.input):
            first, others = node.input[0] in sizes, sizes.intersection(node.input[1:])
            if node.op_type in TAKES_SIZES and (not first or node.op_type == "ConstantOfShape"):
                continue
            if not (node.op_type == "Concat" or (node.op_type in HANDS_ON and first and not others)):
                return False
            sizes.update(node.output)
    return True
