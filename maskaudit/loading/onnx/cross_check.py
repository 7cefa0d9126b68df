"""A converted model held against an independent evaluation of its file, on random inputs, before it is used.

The judge is onnxruntime where it is installed, else the evaluator that the package `onnx` ships, which is written in
Python and too slow for large networks. Where the results differ, every operation is tried by itself on the values that
the evaluator has for its inputs, so that the sentence can name the first that is wrong.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskaudit.errors import InputError, describe_error, printable
from maskaudit.loading.graph import Program

#: Floating-point operations of one pass up to which the evaluator in Python is asked (seconds), and with a runtime.
SLOW_WORK, FAST_WORK = 5e8, 1e12
#: Differences that rounding explains, relative to the largest value of a result.
TOLERANCE = 1e-3
SEED = 0


def compare(
    onnx: Any, source: str, model: Any, spelt: Any, module: Program, shape: Sequence[int | None]
) -> tuple[str, ...]:
    """Hold a program against its file; gives a note where that cannot be done.

    Args:
        model: the file's; spelt: the same as it was converted.
        shape: of a batch that the program takes; None where the file leaves a size open, which cannot be tried.

    Raises:
        InputError: when the results differ, naming the first operation that does.
    """
    sizes = [size for size in shape if size is not None]
    if len(sizes) != len(shape):
        return _uncompared("the size of its inputs is open")
    stated = model.graph.input
    given = next(item for item in stated if item.name not in {tensor.name for tensor in model.graph.initializer})
    dtype = onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type or 1)
    x = np.random.default_rng(SEED).random(sizes).astype(dtype)
    work = module.rehearse(torch.Size(sizes), torch.from_numpy(x).dtype).work
    runtime = importlib.util.find_spec("onnxruntime") is not None
    if work > (FAST_WORK if runtime else SLOW_WORK):
        return _uncompared("a pass takes too long" + ("" if runtime else "; onnxruntime would be fast enough"))
    try:
        expected = (_runtime if runtime else _reference)(onnx, _usual(onnx, model), given.name, x)
    except Exception as error:  # operators that the judge does not have, or values it cannot work with
        if not runtime and any(node.domain not in ("", "ai.onnx") for node in model.graph.node):
            return _uncompared("the package onnx does not know its operators; onnxruntime would")
        return _uncompared(describe_error(error, 120))
    with torch.no_grad():
        found = module(torch.from_numpy(x.copy()))
    results = found if isinstance(found, (tuple, list)) else (found,)
    if len(results) == len(expected) and all(map(alike, results, expected)):
        return ()
    culprit = _first_that_differs(onnx, spelt, module, given.name, x)
    if culprit is None and any(node.op_type in _STEPS for node in spelt.graph.node):
        return ()  # each operation is right; sums that differ in the last bit fell on two sides of a step
    name = culprit or "none of its operations by itself"
    raise InputError(
        f"{source} is an ONNX model whose conversion gives other values than the file: {printable(name, 120)} differs; "
        "give the torch model itself, or a TorchScript archive of it."
    )


def _uncompared(reason: str) -> tuple[str, ...]:
    return (f"The converted model was not compared with an independent evaluation of its file: {reason}.",)


#: Operations with steps: a difference in the last bit of their input can change their result as a whole.
_STEPS = frozenset(
    ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "Round", "Floor", "Ceil", "Sign", "ArgMax", "ArgMin", "Hardmax",
     "TopK", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", "Cast", "Mod")
)  # fmt: skip


def alike(ours: Tensor, theirs: Any) -> bool:
    """Whether two results are equal but for rounding; what is not finite must be so in both."""
    reference = np.asarray(theirs)
    if tuple(ours.shape) != reference.shape:
        return False
    a, b = ours.detach().double().numpy(), reference.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    largest = float(np.abs(b[finite]).max(initial=0.0))
    return bool((np.abs(a[finite] - b[finite]) <= TOLERANCE * largest + 1e-6).all())


def _usual(onnx: Any, model: Any) -> Any:
    """The model with the standard operators under their usual name "", where the file calls them "ai.onnx"."""
    if all(entry.domain != "ai.onnx" for entry in model.opset_import):
        return model
    usual = onnx.ModelProto()
    usual.CopyFrom(model)
    for entry in (*usual.opset_import, *usual.graph.node):
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    return usual


def _reference(onnx: Any, model: Any, name: str, x: Any) -> list[Any]:
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(model)
    with np.errstate(all="ignore"):
        return list(evaluator.run(None, {name: x}))


def _runtime(onnx: Any, model: Any, name: str, x: Any) -> list[Any]:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # without it, 8-bit products overflow on AVX2
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: x}))


def _first_that_differs(onnx: Any, spelt: Any, module: Program, name: str, x: Any) -> str | None:
    """The name of the first operation that does something else with the evaluator's values than the evaluator."""
    wide = onnx.ModelProto()
    wide.CopyFrom(_usual(onnx, spelt))
    made = [output for node in wide.graph.node for output in node.output if output]
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.helper.make_empty_tensor_value_info(output) for output in made)
    try:
        values = dict(zip(made, _reference(onnx, wide, name, x), strict=True))
    except Exception:  # the evaluator does not have one of the operators
        return None
    values[name] = x
    for path, outputs, results in _each_alone(module, values):
        expected = [values[output] for output in outputs if output in values]
        if not all(map(alike, results, expected)):
            return path
    return None


def _each_alone(module: Program, values: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[Tensor]]]:
    """(path, names of outputs, results) of every operation on the evaluator's values for its inputs."""
    for step, operation, held in module.operations():
        inputs = [
            None if name == "" else held[name] if name in held else torch.from_numpy(np.array(values[name]))
            for name in step.inputs
        ]
        with torch.no_grad():
            found = operation(*inputs)
        yield step.path, step.outputs, list(found) if isinstance(found, (tuple, list)) else [found]
