"""The operations of an exported program as the steps of a module.

Each is one of the list in `pt2_ops`, called with the arguments that the file states
(torch/_export/serde/schema.py). Nothing is imported, evaluated or unpickled.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.errors import printable
from maskaudit.loading.graph import GraphStep, rehearsed
from maskaudit.loading.graph_limits import MAX_NODES, check_count, check_name, on_one_device
from maskaudit.loading.op_guards import DIVISIONS, FINITE, GATES, check_arguments, check_values, is_guarded
from maskaudit.loading.pt2 import ops as pt2_ops

#: Numbers of types in the schema (torch/_export/serde/schema.py, ScalarType).
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool,
    13: torch.bfloat16,
}  # fmt: skip
MEMORY_FORMATS = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format,
}  # fmt: skip
GRAD_MODE = "torch.ops.higher_order.wrap_with_set_grad_enabled"
#: Arguments of batch norm and dropout that stay true when a program was exported in training mode.
TRAINING_ARGUMENTS = ("training", "train")
#: Parts inside parts, entries of a list, characters of a text and of a recorded call stack.
MAX_DEPTH, MAX_LIST, MAX_TEXT, MAX_STACK = 8, 4_096, 1_000, 4_000


class Beyond(Exception):
    """The archive needs more than data; the message says what."""


class _Ref:
    """A placeholder for a value inside a stated argument."""

    def __init__(self, position: int) -> None:
        self.position = position


def read_steps(graph: dict[str, Any]) -> list[GraphStep]:
    """The steps of a program, those of its parts inside them.

    Raises:
        Beyond: when it calls something that is not on the list.
        KeyError, TypeError, ValueError, …: when it is not as the schema has it, or too large.
    """
    return _steps(graph, itertools.count(1), 0)


def is_steady(steps: list[GraphStep]) -> bool:
    """Whether no size shrinks as the batch grows: sizes are only added, multiplied, or divided by plain numbers."""
    for step in steps:
        operation = step.module
        if isinstance(operation, _GradMode) and not is_steady(operation.steps):
            return False
        if isinstance(operation, _Call) and not operation.is_steady():
            return False
    return True


def in_training(node: dict[str, Any]) -> bool:
    """Whether an operation was exported in training mode."""
    return any(a["name"] in TRAINING_ARGUMENTS and a["arg"].get("as_bool") is True for a in node["inputs"])


def only(union: dict[str, Any]) -> Any:
    """The content of a union with one entry."""
    (content,) = union.values()
    return content


def _steps(graph: dict[str, Any], numbers: Iterator[int], depth: int) -> list[GraphStep]:
    check_count(len(graph["nodes"]), MAX_NODES, "operations")
    check_count(depth, MAX_DEPTH, "parts inside each other")
    return [_step(node, numbers, depth) for node in graph["nodes"]]


def _step(node: dict[str, Any], numbers: Iterator[int], depth: int) -> GraphStep:
    check_count(next(numbers), MAX_NODES, "operations")
    outputs = tuple(check_name(name) for name in _output_names(node["outputs"]))
    names: list[str] = []
    target = node["target"]
    operation: nn.Module
    if target == GRAD_MODE:
        enabled, inner, *given = (argument["arg"] for argument in node["inputs"])
        graph = inner["as_graph"]["graph"]
        operation = _GradMode(bool(enabled["as_bool"]), graph, _steps(graph, numbers, depth + 1))
        names = [only(argument)["name"] for argument in given]
    else:
        function = _function(target)
        positional = [_value(a["arg"], names) for a in node["inputs"] if a.get("kind") != 2]
        keywords = {a["name"]: _value(a["arg"], names) for a in node["inputs"] if a.get("kind") == 2}
        operation = _Call(function, positional, keywords, several=_gives_list(node["outputs"]))
    described = node.get("metadata", {})
    operation.stack_trace = str(described.get("stack_trace", ""))[-MAX_STACK:]  # for a trace
    stack = str(described.get("nn_module_stack", "")).split(";")[-1].split(",")
    scope = stack[1] if len(stack) > 1 and re.fullmatch(r"\w+(\.\w+)*", stack[1]) else ""
    name = re.sub(r"\W", "_", node.get("name") or (outputs[0] if outputs else "")) or "op"
    path = check_name(f"{scope}.{name}" if scope and not scope.startswith("_") else name)
    return GraphStep(path, operation, tuple(names), outputs)


def _function(target: str) -> Callable[..., Any]:
    """The operation on the list that a target names; nothing else is callable here."""
    function = pt2_ops.allowed(target)
    if function is None:
        raise Beyond(f"it calls {printable(str(target), 60)}")
    return function


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
    if kind in PLAIN_KINDS:
        return _plain(content, PLAIN_KINDS[kind])
    if kind.removesuffix("s") in PLAIN_KINDS:
        check_count(len(content), MAX_LIST, "entries in a list")
        return [_plain(item, PLAIN_KINDS[kind.removesuffix("s")]) for item in content]
    if kind == "as_scalar_type":
        return DTYPES[content]
    if kind == "as_memory_format":
        return MEMORY_FORMATS[content]
    if kind == "as_layout":
        return torch.strided
    if kind == "as_device":
        return torch.device("cpu")  # whatever it was exported on
    raise Beyond(f"an operation takes an argument of the kind {printable(str(kind), 40)}")


#: Kinds of plain arguments and the types of their content.
PLAIN_KINDS: dict[str, tuple[type, ...]] = {
    "as_int": (int,), "as_bool": (bool,), "as_string": (str,), "as_float": (float, int, str),
}  # fmt: skip


def _plain(content: Any, types: tuple[type, ...]) -> Any:
    if type(content) not in types or (isinstance(content, str) and len(content) > MAX_TEXT):
        raise ValueError(f"an argument is {printable(str(content), 40)!r}, expected {types[0].__name__}")
    return float(content) if float in types else content


def _named(content: dict[str, Any], names: list[str]) -> Any:
    name = content.get("name", content.get("as_name"))
    if name is None:
        return only(content)
    names.append(str(name))
    return _Ref(len(names) - 1)


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


class _Call(nn.Module):
    """One operation with the arguments that the file states; `stack_trace` is where the author called it (trace)."""

    def __init__(
        self, function: Callable[..., Any], positional: list[Any], keywords: dict[str, Any], *, several: bool
    ) -> None:
        super().__init__()
        self.function, self.positional, self.keywords, self.several = function, positional, keywords, several
        self.kind = function._schema.name.removeprefix("aten::") if isinstance(function, torch._ops.OpOverload) else ""
        self._check_types()
        self.watched = self.kind.rstrip("_") in DIVISIONS | FINITE
        self.guarded = bool(self.kind) and is_guarded(self.function)
        self._checked: set[tuple[Any, ...]] = set()
        self.stack_trace = ""

    def forward(self, *values: Any) -> Any:
        """The operation's result."""
        positional, keywords = self._arguments(values)
        if self.guarded:
            self._check(values, positional, keywords)
        if self.watched:
            check_values(self.function, tuple(positional))
        return self._given(self.function(*positional, **keywords))

    def rehearse(self, *values: Any) -> Any:
        """The result's shape, from values without data; arguments are checked.

        Raises:
            ValueError: when arguments do not fit, or a size depends on the input's values.
        """
        if self.kind in pt2_ops.ASSERTIONS:
            return None
        if self.kind in pt2_ops.READS_NUMBER:
            return pt2_ops.FromValues(1.0)
        positional, keywords = self._arguments(values)
        if not self.kind:
            return self._given(self.function(*positional, **keywords))
        types = {argument.name: str(argument.type) for argument in self.function._schema.arguments}  # type: ignore[attr-defined]
        stated = {**dict(zip(types, positional, strict=False)), **keywords}
        for name, value in stated.items():
            sized = types.get(name) not in SCALARS or self.kind in pt2_ops.SIZE_OF_NUMBER
            if sized and _from_values(value):
                raise ValueError(f"{self.function} takes a size that depends on the values of the input")
        check_arguments(self.function, tuple(positional), keywords)
        if self.kind in GATES:
            return _recurrent_shapes(stated)
        positional, keywords = on_one_device((positional, keywords))
        return self._given(self.function(*positional, **keywords))

    def _check_types(self) -> None:
        """Refuse numbers and texts where a type, a layout or a device belongs: torch would take any at its word."""
        arguments = self.function._schema.arguments if self.kind else ()  # type: ignore[attr-defined]
        kinds = {argument.name: TYPES.get(str(argument.real_type)) for argument in arguments}
        for name, item in (*zip(kinds, self.positional, strict=False), *self.keywords.items()):
            wanted = kinds.get(name)
            if wanted is not None and item is not None and not isinstance(item, wanted):
                raise ValueError(f"{self.function} is given a {name} that is none")

    def _check(self, values: tuple[Any, ...], positional: list[Any], keywords: dict[str, Any]) -> None:
        """Check the arguments, once per shapes of the values."""
        key = tuple(value.shape if isinstance(value, Tensor) else value for value in values)
        if key not in self._checked:
            check_arguments(self.function, tuple(positional), keywords)
            if len(self._checked) < MAX_LIST:
                self._checked.add(key)

    def _arguments(self, values: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        keywords = {name: _filled(item, values) for name, item in self.keywords.items()}
        return [_filled(item, values) for item in self.positional], keywords

    def is_steady(self) -> bool:
        """Whether its result's size does not shrink when those it is given grow; a length from a start may."""
        if self.kind:
            return self.kind not in pt2_ops.SIZE_OF_NUMBER or not any(
                isinstance(item, _Ref) for item in (*self.positional, *self.keywords.values())
            )
        if self.function in pt2_ops.REPLACED.values():
            return True
        plain = [item for item in self.positional if not isinstance(item, _Ref)]
        if self.keywords or not all(isinstance(item, (int, float)) and item >= 0 for item in plain):
            return False
        if self.function is pt2_ops.SIZES["_operator.floordiv"]:
            return len(plain) == 1 and not isinstance(self.positional[1], _Ref)
        return self.function in pt2_ops.GROWING

    def _given(self, result: Any) -> Any:
        return result[0] if self.several and len(result) == 1 else result

    def extra_repr(self) -> str:
        """The operation's name."""
        return str(self.function)


_DESCRIPTIONS = {
    "ScalarType": torch.dtype, "Layout": torch.layout, "MemoryFormat": torch.memory_format, "Device": torch.device,
}  # fmt: skip
#: Types of arguments that describe a tensor, and what they must be.
TYPES = {**_DESCRIPTIONS, **{f"Optional[{name}]": kind for name, kind in _DESCRIPTIONS.items()}}
#: Types of arguments that take a number which is no size.
SCALARS = ("number", "Optional[number]", "float", "Optional[float]", "Tensor", "Optional[Tensor]")


def _from_values(value: Any) -> bool:
    if isinstance(value, list):
        return any(_from_values(item) for item in value)
    return isinstance(value, pt2_ops.FromValues)


def _recurrent_shapes(a: dict[str, Any]) -> tuple[Tensor, ...]:
    """Output and states of a recurrent layer, without stepping through it."""
    x: Tensor = a["input"]
    states = a["hx"] if isinstance(a["hx"], list) else [a["hx"]]
    width = states[0].shape[2] * (2 if a["bidirectional"] else 1)
    shapes = [(*x.shape[:2], width), *(state.shape for state in states)]
    return tuple(torch.empty(shape, dtype=x.dtype, device="meta") for shape in shapes)


class _GradMode(nn.Module):
    """A part of the program that runs with gradients switched on or off."""

    def __init__(self, enabled: bool, graph: dict[str, Any], steps: list[GraphStep]) -> None:
        super().__init__()
        self.enabled, self.steps = enabled, steps
        self.sources = [only(item)["name"] for item in graph["inputs"]]
        self.results = [only(item)["name"] for item in graph["outputs"]]
        for number, step in enumerate(self.steps):
            self.add_module(f"{step.path.rpartition('.')[2]}_{number}", step.module)

    def forward(self, *values: Any) -> Any:
        """The part's results."""
        with torch.set_grad_enabled(self.enabled):
            return self._run(values, lambda module, *given: module(*given))

    def rehearse(self, *values: Any) -> Any:
        """The shapes of the part's results."""
        return self._run(values, rehearsed)

    def _run(self, values: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        known = {"": None, **dict(zip(self.sources, values, strict=True))}
        for step in self.steps:
            result = call(step.module, *(known[name] for name in step.inputs))
            single = len(step.outputs) == 1
            known.update({step.outputs[0]: result} if single else zip(step.outputs, result or (), strict=False))
        found = tuple(known[name] for name in self.results)
        return found[0] if len(found) == 1 else found


def _filled(item: Any, values: tuple[Any, ...]) -> Any:
    if isinstance(item, _Ref):
        return values[item.position]
    return [_filled(part, values) for part in item] if isinstance(item, list) else item
