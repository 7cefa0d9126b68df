"""ONNX files: parsed by the package `onnx`, converted operator by operator. Opening one never runs code.

Why not an existing converter: onnx2torch 1.5.15 knows no operator in the version that torch's exporter has
written since 2.9 (opset 18 and later), and imports torchvision, which does not import beside every torch.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.errors import InputError
from maskaudit.loading.graph import Program, Step, any_batch
from maskaudit.loading.interface import Contents, ModelFile, Options, describe_error, printable
from maskaudit.loading.onnx_attributes import Attributes
from maskaudit.loading.onnx_ops import OPS

CONVERSION_NOTE = (
    "The model is ONNX, converted to torch operations: what is audited are the gradients of the converted model, "
    "which can differ from those of the code it was exported from."
)
#: Oldest version of the operator set whose operators mean what the converter does with them.
OLDEST_OPSET = 7
INSTALL_HINT = "install it with: pip install 'maskaudit[onnx]'"


def read(file: ModelFile, options: Options) -> Contents:
    """The converted model; its modules bear the names of the nodes.

    Raises:
        InputError: without the package, for a damaged file, weights outside the model's folder, operators that
            are not known, or a graph that is no classifier of one input.
    """
    onnx = _package(file.source)
    digest = hashlib.sha256(file.sha256.encode())
    try:
        model = onnx.load_model_from_string(file.data)
        graph = model.graph
        opset = _opset(file.source, model)
        _check_operators(file.source, model)
        outside = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        for tensor in outside:
            _bring_in(file.source, tensor, digest)
        module, shape = _convert(onnx, graph, opset)
    except InputError:
        raise
    except Exception as error:  # the parser and malformed nodes raise whatever the damaged bytes lead to
        raise InputError(
            f"{file.source} is an ONNX model that cannot be converted ({describe_error(error)}); export it again, or "
            "give the torch model itself."
        ) from error
    module, said = any_batch(module, shape)
    notes = (CONVERSION_NOTE, *said)
    if options.arch is not None:
        notes += ("--arch was not used: an ONNX model brings its own operations.",)
    return Contents(module, "onnx", {}, (), notes, digest.hexdigest() if outside else None)


def _package(source: str) -> Any:
    try:
        importlib.import_module("onnx.numpy_helper")
        return importlib.import_module("onnx")
    except ModuleNotFoundError as error:
        raise InputError(f"{source} is an ONNX model, which needs the package onnx; {INSTALL_HINT}.") from error
    except Exception as error:  # a broken installation may raise anything on import
        raise InputError(f"The package onnx does not import ({describe_error(error)}); {INSTALL_HINT}.") from error


def _opset(source: str, model: Any) -> int:
    version = next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version < OLDEST_OPSET:
        raise InputError(
            f"{source} uses version {version} of the ONNX operators; {OLDEST_OPSET} is the oldest that is read. "
            "Export it again with a newer opset."
        )
    return version


def _check_operators(source: str, model: Any) -> None:
    """All operators that are not known, in one sentence."""
    unknown = sorted(
        {
            f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            for node in model.graph.node
            if node.op_type not in OPS or node.domain not in ("", "ai.onnx")
        }
    )
    if unknown:
        raise InputError(
            f"{source} uses ONNX operators that are not converted: {printable(', '.join(unknown), 120)}; "
            "give the torch model itself, or a TorchScript archive of it."
        )


def _bring_in(source: str, tensor: Any, digest: Any) -> None:
    """Read weights that lie in a file beside the model; that file must not be anywhere else."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = said.get("location", ""), Path(source).resolve().parent
    relative = PurePosixPath(location)
    path = (folder / relative).resolve()
    if not location or relative.is_absolute() or ".." in relative.parts or not path.is_relative_to(folder):
        raise InputError(
            f"{source} keeps weights in {printable(location, 80)!r}, outside its own folder, and is refused."
        )
    if not path.is_file():
        raise InputError(f"{source} keeps weights in the file {printable(location, 80)!r}, which is not beside it.")
    offset, length = int(said.get("offset", 0)), int(said.get("length", -1))
    with path.open("rb") as stream:
        stream.seek(max(0, offset))
        content = stream.read(length if length >= 0 else -1)
    if 0 <= length != len(content):
        raise InputError(f"The weights in {printable(location, 80)!r} end too early; copy the file again.")
    digest.update(content)
    tensor.raw_data = content
    tensor.data_location = 0  # embedded
    del tensor.external_data[:]


def _convert(onnx: Any, graph: Any, opset: int) -> tuple[nn.Module, list[int | None]]:
    """The module, and the shape of its input (None where it may vary)."""
    statistics = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]}
    tensors = {
        tensor.name: (tensor.name, _held(_tensor(onnx, tensor), learnt=tensor.name not in statistics))
        for tensor in graph.initializer
    }
    inputs = [given for given in graph.input if given.name not in tensors]
    if len(inputs) != 1:
        raise ValueError(f"the graph takes {len(inputs)} inputs, a classifier takes one")
    if not graph.output:
        raise ValueError("the graph has no output")
    steps = []
    for number, node in enumerate(graph.node):
        values = {attribute.name: _attribute(onnx, attribute) for attribute in node.attribute}
        if node.op_type == "BatchNormalization" and values.get("training_mode"):
            raise ValueError("it was exported in training mode")
        attributes = Attributes(opset, len(node.output), values)
        name = node.name or f"{node.op_type}_{number}"
        outputs = tuple(output or f"unused {number} {place}" for place, output in enumerate(node.output))
        if node.op_type not in ("Split", "TopK"):
            outputs = outputs[:1]  # further outputs (masks, statistics) are not computed
        steps.append(Step(name, _Operator(node.op_type, attributes), tuple(node.input), outputs))
    module = Program(steps, tensors, inputs[0].name, tuple(output.name for output in graph.output))
    sizes = inputs[0].type.tensor_type.shape.dim
    return module, [int(size.dim_value) or None for size in sizes] or [None]


class _Operator(nn.Module):
    """One node: an operator with its attributes; constants among them become buffers."""

    def __init__(self, kind: str, attributes: Attributes) -> None:
        super().__init__()
        self.kind, self.attributes = kind, attributes
        self.operator = OPS[kind]

    def forward(self, *inputs: Any) -> Any:
        """The node's output, a tuple of them for Split and TopK."""
        return self.operator(self.attributes, *inputs)

    def extra_repr(self) -> str:
        """The operator's name."""
        return self.kind


def _held(tensor: Tensor, *, learnt: bool) -> Tensor:
    """Weights become parameters; running statistics, scalars and whole numbers are constants."""
    return nn.Parameter(tensor) if learnt and tensor.is_floating_point() and tensor.dim() else tensor


def _tensor(onnx: Any, stated: Any) -> Tensor:
    array = onnx.numpy_helper.to_array(stated)
    if array.dtype.kind not in "fiub":  # bfloat16 and smaller floats
        array = array.astype("float32")
    return torch.from_numpy(array.copy())


def _attribute(onnx: Any, stated: Any) -> Any:
    """An attribute as a plain value or a tensor; sub-graphs are refused."""
    value = onnx.helper.get_attribute_value(stated)
    if isinstance(value, onnx.TensorProto):
        if value.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError("a constant inside a node lies in another file")
        return _tensor(onnx, value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (int, float)):
        return value
    items = list(value) if hasattr(value, "__iter__") else [value]
    if all(isinstance(item, (int, float)) for item in items):
        return items
    raise ValueError(f"the attribute {printable(stated.name, 40)} is of a kind that is not supported")
