"""The program inside a .pt2 archive, read as data.

Weights are raw bytes, and the program is a list of operations of torch's own `aten` set, each called with
the arguments that the file states (torch/_export/serde/schema.py). Nothing is imported, evaluated or unpickled.
"""

from __future__ import annotations

import io
import json
import math
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.loading.graph import Program, Shape, Step
from maskaudit.loading.interface import printable

#: Major version of the program's schema that is understood (torch 2.5 to 2.13 write 8).
SCHEMA_MAJOR = 8
#: Numbers of types in the schema (torch/_export/serde/schema.py, ScalarType).
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
MEMORY_FORMATS = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format,
}  # fmt: skip
#: Arithmetic on sizes.
SIZES: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
} | {"torch.sym_max": torch.sym_max, "torch.sym_min": torch.sym_min, "torch.sym_int": torch.sym_int}  # fmt: skip
#: An aten operation that opens files.
FORBIDDEN = frozenset({"from_file"})
ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
GRAD_MODE = "torch.ops.higher_order.wrap_with_set_grad_enabled"
#: Arguments of batch norm and dropout that stay true when a program was exported in training mode.
TRAINING_ARGUMENTS = ("training", "train")


class Beyond(Exception):
    """The archive needs more than data; the message says what."""


class _Ref:
    """Stands for a value inside a stated argument."""

    def __init__(self, position: int) -> None:
        self.position = position


def pickled(entry: dict[str, Any]) -> bool:
    """Whether a tensor is stored as a pickle, by its entry in the list of payloads."""
    return bool(entry["use_pickle"])


def read_json(content: bytes) -> Any:
    """A JSON member."""
    return json.loads(content.decode("utf-8"))


def read_program(members: dict[str, bytes]) -> tuple[nn.Module, Shape, tuple[str, ...]]:
    """The program among an archive's members, by their path without the top folder.

    Returns:
        The module, the shape of its input (None where it may vary), and notes.

    Raises:
        Beyond: when it needs more than data.
        KeyError, TypeError, ValueError, …: when it is not as the schema has it.
    """
    described = next(
        (members[name] for name in ("models/model.json", "serialized_exported_program.json") if name in members), None
    )
    if described is None:
        raise Beyond("it holds no program named model")
    stated = read_json(described)
    version = stated["schema_version"]
    if version["major"] != SCHEMA_MAJOR:
        raise Beyond(f"its schema has version {version['major']}, and {SCHEMA_MAJOR} is understood")
    graph, signature = stated["graph_module"]["graph"], stated["graph_module"]["signature"]
    tensors, inputs = _inputs(signature["input_specs"], _tensors(members))
    if len(inputs) != 1:
        raise ValueError(f"the program takes {len(inputs)} inputs, a classifier takes one")
    results = tuple(
        _only(stated_output["user_output"]["arg"])["name"]
        for stated_output in signature["output_specs"]
        if "user_output" in stated_output
    )
    module = Program(_steps(graph), tensors, inputs[0], results)
    shape = [size.get("as_int") for size in graph["tensor_values"][inputs[0]]["sizes"]]
    notes: tuple[str, ...] = ()
    if any(_in_training(node) for node in graph["nodes"]):
        notes = ("The program was exported in training mode, and keeps that behaviour.",)
    return module, shape, notes


def _inputs(specs: list[Any], weights: dict[str, Tensor]) -> tuple[dict[str, tuple[str, Tensor]], list[str]]:
    """Weights by the name of their value, with their paths; and the names of what the user gives."""
    tensors: dict[str, tuple[str, Tensor]] = {}
    users: list[str] = []
    for spec in specs:
        ((kind, content),) = spec.items()
        if kind == "user_input":
            users.append(_only(content["arg"])["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            path = content[f"{kind}_name"]
            tensors[content["arg"]["name"]] = (path, weights[path])
        else:
            raise Beyond(f"it has an input of the kind {printable(str(kind), 40)}")
    return tensors, users


def _tensors(members: dict[str, bytes]) -> dict[str, Tensor]:
    """Weights and constants by name, from raw bytes or, in older archives, torch.save files (safe loader)."""
    found: dict[str, Tensor] = {}
    for part in ("weights", "constants"):
        config = members.get(f"data/{part}/model_{part}_config.json")
        for name, entry in (read_json(config)["config"] if config is not None else {}).items():
            if pickled(entry):
                raise Beyond(f"{printable(name, 40)} is pickled")
            found[name] = _tensor(members[f"data/{part}/{entry['path_name']}"], entry)
    for name in ("data/weights/model.pt", "data/constants/model.pt", "serialized_state_dict.pt",
                 "serialized_state_dict.json", "serialized_constants.pt", "serialized_constants.json"):  # fmt: skip
        if members.get(name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.update(torch.load(io.BytesIO(members[name]), map_location="cpu", weights_only=True))
    return found


def _tensor(content: bytes, entry: dict[str, Any]) -> Tensor:
    meta = entry["tensor_meta"]
    shape, strides = ([_whole(item) for item in meta[key]] for key in ("sizes", "strides"))
    dtype = DTYPES[meta["dtype"]]
    storage = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
    if math.prod(shape) > storage.numel():
        raise ValueError(f"a tensor of shape {tuple(shape)} is stored with {storage.numel()} numbers")
    offset = _whole(meta["storage_offset"])
    tensor = storage.as_strided(shape, strides, offset).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(tensor, meta["requires_grad"] and tensor.is_floating_point()) if entry["is_param"] else tensor


def _whole(size: dict[str, Any]) -> int:
    value = size["as_int"]
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a whole number, got {value!r}")
    return value


def _steps(graph: dict[str, Any]) -> list[Step]:
    return [_step(node) for node in graph["nodes"]]


def _step(node: dict[str, Any]) -> Step:
    outputs = tuple(_output_names(node["outputs"]))
    names: list[str] = []
    target = node["target"]
    if target == GRAD_MODE:
        enabled, inner, *given = (argument["arg"] for argument in node["inputs"])
        graph = inner["as_graph"]["graph"]
        operation: nn.Module = _GradMode(bool(enabled["as_bool"]), graph)
        names = [_only(argument)["name"] for argument in given]
    else:
        function = _function(target)
        positional = [_value(a["arg"], names) for a in node["inputs"] if a.get("kind") != 2]
        keywords = {a["name"]: _value(a["arg"], names) for a in node["inputs"] if a.get("kind") == 2}
        operation = _Call(function, positional, keywords, several=_gives_list(node["outputs"]))
        operation.stack_trace = str(node.get("metadata", {}).get("stack_trace", ""))
    stack = str(node.get("metadata", {}).get("nn_module_stack", "")).split(";")[-1].split(",")
    scope = stack[1] if len(stack) > 1 and re.fullmatch(r"\w+(\.\w+)*", stack[1]) else ""
    name = re.sub(r"\W", "_", node.get("name") or (outputs[0] if outputs else "")) or "op"
    operation.stack_trace = str(node.get("metadata", {}).get("stack_trace", ""))  # type: ignore[assignment]  # for a trace
    return Step(f"{scope}.{name}" if scope and not scope.startswith("_") else name, operation, tuple(names), outputs)


def _function(target: str) -> Callable[..., Any]:
    """The operation of torch's own set, or arithmetic on sizes, that a target names; nothing else is callable here."""
    if target in SIZES:
        return SIZES[target]
    match = ATEN.fullmatch(target)
    if match is None or match[1] in FORBIDDEN:
        raise Beyond(f"it calls {printable(target, 60)}")
    overload = getattr(getattr(torch.ops.aten, match[1], None), match[2], None)
    if not isinstance(overload, torch._ops.OpOverload):
        raise Beyond(f"it calls {printable(target, 60)}, which this torch does not have")
    return overload


def _value(argument: dict[str, Any], names: list[str]) -> Any:
    """An argument as stated; values computed earlier become references, their names are appended to `names`."""
    ((kind, content),) = argument.items()
    if kind == "as_none":
        return None
    if kind in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
        return _named(content, names)
    if kind in ("as_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return [_named(item, names) for item in content]
    if kind == "as_optional_tensor":
        return _value(content, names)
    if kind == "as_optional_tensors":
        return [_value(item, names) for item in content]
    if kind in ("as_int", "as_ints", "as_bool", "as_bools", "as_string", "as_strings"):
        return content
    if kind == "as_float":
        return float(content)
    if kind == "as_floats":
        return [float(item) for item in content]
    if kind == "as_scalar_type":
        return DTYPES[content]
    if kind == "as_memory_format":
        return MEMORY_FORMATS[content]
    if kind == "as_layout":
        return torch.strided
    if kind == "as_device":
        return torch.device("cpu")  # whatever it was exported on
    raise Beyond(f"an operation takes an argument of the kind {printable(str(kind), 40)}")


def _named(content: dict[str, Any], names: list[str]) -> Any:
    name = content.get("name", content.get("as_name"))
    if name is None:
        return _only(content)
    names.append(str(name))
    return _Ref(len(names) - 1)


def _only(union: dict[str, Any]) -> Any:
    """The content of a union with one entry."""
    (content,) = union.values()
    return content


def _output_names(outputs: list[Any]) -> list[str]:
    """Names of an operation's results in order; a result that is not used gets a name of its own."""
    found: list[str] = []
    for output in outputs:
        ((kind, content),) = output.items()
        items = content if isinstance(content, list) else [content]
        for item in items:
            if isinstance(item, dict):
                item = item.get("as_tensor", item)
            name = item.get("name", item.get("as_name")) if isinstance(item, dict) else None
            if name is None and kind != "as_none" and not isinstance(item, bool):
                raise ValueError(f"an output of the kind {kind} has no name")
            found.append(str(name) if name is not None else f"unused {id(item)} {len(found)}")
    return found


def _gives_list(outputs: list[Any]) -> bool:
    return len(outputs) == 1 and next(iter(outputs[0])) in ("as_tensors", "as_optional_tensors")


def _in_training(node: dict[str, Any]) -> bool:
    return any(a["name"] in TRAINING_ARGUMENTS and a["arg"].get("as_bool") is True for a in node["inputs"])


class _Call(nn.Module):
    """One operation with the arguments that the file states; `stack_trace` is where the author called it (trace)."""

    def __init__(
        self, function: Callable[..., Any], positional: list[Any], keywords: dict[str, Any], *, several: bool
    ) -> None:
        super().__init__()
        self.function, self.positional, self.keywords, self.several = function, positional, keywords, several
        self.stack_trace = ""

    def forward(self, *values: Any) -> Any:
        """The operation's result."""
        positional = [_filled(item, values) for item in self.positional]
        keywords = {name: _filled(item, values) for name, item in self.keywords.items()}
        result = self.function(*positional, **keywords)
        return result[0] if self.several and len(result) == 1 else result

    def extra_repr(self) -> str:
        """The operation's name."""
        return str(self.function)


class _GradMode(nn.Module):
    """A part of the program that runs with gradients switched on or off."""

    def __init__(self, enabled: bool, graph: dict[str, Any]) -> None:
        super().__init__()
        self.enabled = enabled
        self.sources = [_only(item)["name"] for item in graph["inputs"]]
        self.results = [_only(item)["name"] for item in graph["outputs"]]
        self.steps = _steps(graph)
        for number, step in enumerate(self.steps):
            self.add_module(f"{step.path.rpartition('.')[2]}_{number}", step.module)

    def forward(self, *values: Any) -> Any:
        """The part's results."""
        known = {"": None, **dict(zip(self.sources, values, strict=True))}
        with torch.set_grad_enabled(self.enabled):
            for step in self.steps:
                result = step.module(*(known[name] for name in step.inputs))
                single = len(step.outputs) == 1
                known.update({step.outputs[0]: result} if single else zip(step.outputs, result, strict=False))
        found = tuple(known[name] for name in self.results)
        return found[0] if len(found) == 1 else found


def _filled(item: Any, values: tuple[Any, ...]) -> Any:
    if isinstance(item, _Ref):
        return values[item.position]
    return [_filled(part, values) for part in item] if isinstance(item, list) else item
