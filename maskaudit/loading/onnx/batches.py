"""Batch sizes that an export baked into its reshapes, opened.

Networks are often exported with the batch of one example. Where a shape that a Reshape is given begins with that
number, 0 in its place keeps the size that comes in, by the operator's definition. Whether that is what was meant is
found out by running two batches at once.
"""

from __future__ import annotations

from typing import Any


def opened(onnx: Any, model: Any, size: int) -> Any | None:
    """A copy whose reshapes to `size` points keep the batch as it comes; None where there are none.

    Args:
        model: a ModelProto, which is not touched.
        size: the batch size that the file insists on.
    """
    shapes = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            shapes[node.output[0]] = node.attribute[0].t
    copy, changed = onnx.ModelProto(), False
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in shapes:
            continue
        wanted = onnx.numpy_helper.to_array(shapes[node.input[1]]).copy()
        if (
            wanted.ndim != 1
            or not len(wanted)
            or wanted[0] != size
            or any(a.name == "allowzero" for a in node.attribute)
        ):
            continue
        wanted[0] = 0
        node.input[1] = f"{node.input[1]} opened {number}"
        copy.graph.initializer.append(onnx.numpy_helper.from_array(wanted, node.input[1]))
        changed = True
    return copy if changed else None
