"""ONNX files: parsed by the package `onnx`, converted operator by operator. Opening one never runs code.

Why not an existing converter: onnx2torch 1.5.15 knows no operator in the version that torch's exporter has
written since 2.9 (opset 18 and later). onnx2pytorch 0.6.0 answers 30 of the 1,227 operator tests of the package `onnx`
wrongly without a word, and 31 fail after they were opened (`benchmarks/onnx_operators.py --converter`). Both import
torchvision, which does not import with every torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.errors import InputError, describe_error, printable
from maskaudit.files import is_file
from maskaudit.loading.graph import GraphStep, Program, any_batch
from maskaudit.loading.graph_limits import MAX_NODES, TooLarge, check_count, check_name, input_shape
from maskaudit.loading.interface import Contents, ModelFile, Options
from maskaudit.loading.onnx.attributes import DTYPES, Attributes
from maskaudit.loading.onnx.batches import opened
from maskaudit.loading.onnx.cross_check import compare
from maskaudit.loading.onnx.decompose import replaces, spelt_out
from maskaudit.loading.onnx.functions import every_node, inlined
from maskaudit.loading.onnx.nodes import check_node, is_steady
from maskaudit.loading.onnx.ops import OPS, SEVERAL
from maskaudit.loading.onnx.quantisers import QUANTISERS, quantises
from maskaudit.loading.onnx.runtime import plain_quantised
from maskaudit.loading.onnx.tables import one_input, plain_tables
from maskaudit.loading.onnx.unpacked_size import MAX_FIELDS, count_fields
from maskaudit.target.chunks import FixedBatch

CONVERSION_NOTE = (
    "The model is ONNX, converted to torch operations: what is audited are the gradients of the converted model, "
    "which can differ from those of the code it was exported from."
)
#: Oldest version of the operator set whose operators mean what the converter does with them.
OLDEST_OPSET = 7
#: Bytes of all weights in other files, and characters of an attribute.
MAX_OUTSIDE, MAX_TEXT = 2**30, 1_000
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
        check_count(count_fields(file.data), MAX_FIELDS, "fields")
        given, table_notes, columns = one_input(onnx, inlined(onnx, onnx.load_model_from_string(file.data)))
        model, asked = plain_tables(onnx, given)
        model = plain_quantised(onnx, model)
        graph = model.graph
        check_count(sum(1 for _ in every_node(graph.node)), MAX_NODES, "operators")
        opset = _opset(file.source, model)
        _check_operators(onnx, file.source, model)
        outside = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        room = MAX_OUTSIDE
        for tensor in outside:
            room -= _bring_in(onnx, file.source, tensor, digest, room)
        spelt = spelt_out(onnx, model, opset, functools.partial(_tensor, onnx), functools.partial(_attribute, onnx))
        _check_operators(onnx, file.source, spelt, spelt=True)
        program, shape, dtype = _convert(onnx, spelt.graph, opset)
        module, notes = any_batch(program, shape, dtype), tuple[str, ...]()
        if isinstance(module, FixedBatch):
            program, module, notes = _opened(onnx, spelt, opset, module.size) or (program, module, ())
        if shape:
            batch = module.size if isinstance(module, FixedBatch) else shape[0] or 2
            notes += compare(onnx, file.source, asked, spelt, program, [batch, *shape[1:]])
    except InputError:
        raise
    except TooLarge as error:
        raise InputError(f"{file.source} is an ONNX model beyond what is read here: {error}.") from error
    except Exception as error:  # the parser and malformed nodes raise whatever the damaged bytes lead to
        raise InputError(
            f"{file.source} is an ONNX model that cannot be converted ({describe_error(error)}); export it again, or "
            "give the torch model itself."
        ) from error
    notes = (CONVERSION_NOTE, *table_notes, *notes)
    if options.arch is not None:
        notes += ("--arch was not used: an ONNX model brings its own operations.",)
    return Contents(module, "onnx", {}, (), notes, digest.hexdigest() if outside else None, columns)


def _package(source: str) -> Any:
    try:
        importlib.import_module("onnx.numpy_helper")
        importlib.import_module("onnx.inliner")
        importlib.import_module("onnx.shape_inference")
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


def _check_operators(onnx: Any, source: str, model: Any, *, spelt: bool = False) -> None:
    """All operators that are not known, in one sentence; before the model is spelt out, those that never can be."""
    unknown = sorted(
        {
            f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            for node in model.graph.node
            if not _is_known(onnx, node, spelt=spelt)
        }
    )
    if unknown:
        remedy = "give the torch model itself, or a TorchScript archive of it"
        if any(name.startswith("ai.onnx.ml") for name in unknown):  # trees and the like have no torch model
            remedy = "audit it as a black box: py:PACKAGE:OBJECT for a session of ONNX Runtime that opens it"
        raise InputError(
            f"{source} uses ONNX operators that are not converted: {printable(', '.join(unknown), 120)}; {remedy}."
        )


def _is_known(onnx: Any, node: Any, *, spelt: bool) -> bool:
    """Whether a node can be converted, or, before the model is spelt out, replaced."""
    if node.domain not in ("", "ai.onnx"):
        return quantises(node.domain, node.op_type)
    known = node.op_type in OPS and node.op_type not in QUANTISERS
    return known or (not spelt and replaces(onnx, node))


def _bring_in(onnx: Any, source: str, tensor: Any, digest: Any, room: int) -> int:
    """Read weights that lie in a file next to the model, and nowhere else; returns how many bytes they have."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), Path(source).resolve().parent
    relative = PurePosixPath(location)
    path = (folder / relative).resolve()
    if not location or relative.is_absolute() or ".." in relative.parts or not path.is_relative_to(folder):
        raise InputError(
            f"{source} keeps weights in {printable(location, 80)!r}, outside its own folder, and is refused."
        )
    if not is_file(path):
        raise InputError(f"{source} keeps weights in the file {printable(location, 80)!r}, which is not next to it.")
    each = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    needed, offset = math.prod(tensor.dims) * each, int(entries.get("offset", 0))
    length = int(entries.get("length", needed))
    if min(needed, offset, *tensor.dims, 0) < 0 or length > needed:
        raise ValueError(f"weights of shape {tuple(tensor.dims)} are stated with {length} bytes from byte {offset} on")
    if length > room:
        raise TooLarge(f"it keeps more than {MAX_OUTSIDE} bytes of weights in other files")
    if offset + length > path.stat().st_size:
        raise InputError(f"The weights in {printable(location, 80)!r} end too early; copy the file again.")
    with path.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(length)
    digest.update(content)
    tensor.raw_data = content
    tensor.data_location = 0  # embedded
    del tensor.external_data[:]
    return length


def _convert(onnx: Any, graph: Any, opset: int) -> tuple[Program, list[int | None] | None, torch.dtype]:
    """The module, the shape of its input (None where it may vary, or as a whole) and its type."""
    _check_names(graph)
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
        check_node(onnx, node, opset)
        values = {attribute.name: _attribute(onnx, attribute) for attribute in node.attribute}
        if node.op_type == "BatchNormalization" and values.get("training_mode"):
            raise ValueError("it was exported in training mode")
        attributes = Attributes(opset, len(node.output), values)
        name = node.name or f"{node.op_type}_{number}"
        outputs = tuple(output or f"unused {number} {place}" for place, output in enumerate(node.output))
        if node.op_type not in SEVERAL:
            outputs = outputs[:1]  # further outputs (masks, statistics of training) are not computed
        steps.append(GraphStep(name, _Operator(node.op_type, attributes), tuple(node.input), outputs))
    results = tuple(output.name for output in graph.output)
    module = Program(steps, tensors, inputs[0].name, results, steady=is_steady(graph))
    stated = inputs[0].type.tensor_type
    dtype = DTYPES.get(stated.elem_type, torch.float32)
    if not stated.HasField("shape"):
        return module, None, dtype
    return module, input_shape(size.dim_value if size.dim_value > 0 else None for size in stated.shape.dim), dtype


def _opened(onnx: Any, model: Any, opset: int, size: int) -> tuple[Program, nn.Module, tuple[str, ...]] | None:
    """The program with its batch size opened, where two batches at once then get the answers of each alone."""
    free = opened(onnx, model, size)
    if free is None:
        return None
    try:
        program, shape, dtype = _convert(onnx, free.graph, opset)
        module = any_batch(program, shape, dtype)
    except Exception:  # whatever a graph says whose reshapes meant something else
        return None
    if isinstance(module, FixedBatch):
        return None
    note = f"The model was exported for batches of exactly {size}, which only its reshapes say; they were opened."
    return program, module, (note,)


def _check_names(graph: Any) -> None:
    """Every value is made once."""
    made: set[str] = set()
    stated = [*graph.initializer, *graph.input]
    for name in (*{item.name for item in stated}, *(output for node in graph.node for output in node.output if output)):
        if check_name(name) in made:
            raise ValueError(f"the value {printable(name, 40)} is made twice")
        made.add(name)
    if len({item.name for item in graph.initializer}) < len(graph.initializer):
        raise ValueError("two weights have the same name")


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
    if isinstance(value, bytes) and len(value) > MAX_TEXT:
        raise TooLarge(f"an attribute has {len(value)} characters, {MAX_TEXT} are read")
    if isinstance(value, onnx.TensorProto):
        if value.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError("a constant inside a node is kept in another file")
        return _tensor(onnx, value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (int, float)):
        return value
    items = list(value) if hasattr(value, "__iter__") else [value]
    if all(isinstance(item, (int, float)) for item in items):
        return items
    if all(isinstance(item, bytes) and len(item) <= MAX_TEXT for item in items):
        return [item.decode("utf-8") for item in items]
    raise ValueError(f"the attribute {printable(stated.name, 40)} is of a kind that is not supported")
