"""TorchScript: which module and source line an autograd node belongs to, read off the module's own graph.

The interpreter of TorchScript runs below Python, so no call is seen; what
remains are autograd nodes, numbered in the order in which they were made. The
inlined graph lists the ops in the order in which they run, each with the path
of its module and the source range that the file carries. Matching the two
sequences by kind gives every node its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import Node

from maskaudit.results import Location
from maskaudit.trace.scope import innermost_user_line
from maskaudit.trace.vocabulary import CUTTING, GRAPH_KINDS

#: One step of a module hierarchy: `net(Sequential)`, or the marks of calls inside one module.
_STEP = re.compile(r"^(?P<name>.*)\((?P<kind>[^()]*)\)$")


@dataclass(frozen=True)
class ScriptedOp:
    """One op of a scripted graph: its kind without namespace, and where it is."""

    kind: str
    location: Location


class ScriptedGraph:
    """The ops of one scripted or traced module in the order in which they run.

    Args:
        module: the module; `prefix` is its path in the audited model ("" for the root).
    """

    def __init__(self, module: torch.jit.ScriptModule, prefix: str = "") -> None:
        self.nodes: list[Any] = []
        try:
            graph = module.inlined_graph
        except (RuntimeError, AttributeError):  # no `forward` of its own
            self.places: list[ScriptedOp] = []
            self._inputs: list[Any] = []
            return
        self._inputs = list(graph.inputs())[1:]
        self.nodes = list(_ops(graph))
        self.places = [_place(node, prefix) for node in self.nodes]

    def locate(self, nodes: Sequence[Node]) -> dict[Node, Location]:
        """Place of each autograd node; one without an op of its kind goes with the op before it."""
        ordered = sorted(nodes, key=lambda node: node._sequence_nr())
        found: dict[Node, Location] = {}
        position, last = 0, None
        for node in ordered:
            match = self._next(node_kind(node), position)
            if match is not None:
                position, last = match + 1, self.places[match].location
            if last is not None:
                found[node] = last
        return found

    def _next(self, kind: str, start: int) -> int | None:
        """First op of the kind from `start` on, else from the beginning: a loop runs its ops again."""
        order = (*range(start, len(self.places)), *range(start))
        return next((i for i in order if kind in GRAPH_KINDS.get(self.places[i].kind, (self.places[i].kind,))), None)

    def cut(self) -> Location | None:
        """The first op that passes the data on and drops the gradient, on the way from the input to the output."""
        moved = {value.debugName() for value in self._inputs}
        for node, place in zip(self.nodes, self.places, strict=True):
            if not any(value.debugName() in moved for value in node.inputs()):
                continue
            moved |= {value.debugName() for value in node.outputs()}
            if place.kind in CUTTING or (place.kind in ("to", "type_as") and _becomes_integer(node)):
                return place.location
        return None


def node_kind(node: Node) -> str:
    """`RoundBackward0` → `round`, `NativeBatchNormBackward0` → `native_batch_norm`."""
    name = node.name().rsplit("::", 1)[-1].rstrip("0123456789").removesuffix("Backward")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _ops(block: Any) -> Iterator[Any]:
    """Ops of a graph and of the blocks inside its loops and branches, in order."""
    for node in block.nodes():
        if node.kind().startswith("aten::"):
            yield node
        for inner in node.blocks():
            yield from _ops(inner)


def _place(node: Any, prefix: str) -> ScriptedOp:
    kind = node.kind().removeprefix("aten::").rstrip("_")
    hierarchy = module_path(node.getModuleHierarchy()) or node.scopeName().rsplit("/", 1)[-1].removeprefix("__module.")
    module = ".".join(part for part in (prefix, hierarchy) if part and part != "__module")
    file, line = innermost_user_line(node.sourceRange(), innermost_first=True)
    return ScriptedOp(kind, Location(module, kind, file, line))


def module_path(hierarchy: str) -> str:
    """The path of a module from its hierarchy: `net(Sequential).0(Conv2d).SELF(Conv2d)` → `net.0`."""
    names = []
    for part in hierarchy.split(")."):
        match = _STEP.match(part if part.endswith(")") else f"{part})")
        if match is not None and match["name"] not in ("SELF", "UNKNOWN_INSTANCE", "top"):
            names.append(match["name"])
    return ".".join(names)


def _becomes_integer(node: Any) -> bool:
    """Whether a cast has an integer type as its result, as far as the graph knows."""
    result = node.outputsAt(0).type()
    known = getattr(result, "dtype", lambda: None)()
    if known is not None:
        return not known.is_floating_point
    for value in node.inputs():
        number = value.toIValue() if value.node().kind() == "prim::Constant" else None
        if isinstance(number, int) and not isinstance(number, bool):
            return number in _INTEGER_CODES
    return False


#: Codes of uint8, int8, int16, int32, int64 and bool in a serialised graph (c10::ScalarType).
_INTEGER_CODES = frozenset({0, 1, 2, 3, 4, 11})
