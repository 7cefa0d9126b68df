"""Functions that a model defines itself, put in place of their calls: torch's exporter writes modules so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from maskaudit.errors import printable
from maskaudit.loading.graph_limits import MAX_NODES, TooLarge

#: Calls within calls, and bytes that all bodies take together where they are put.
MAX_CALLS, MAX_BYTES = 100, 2**28
_Key = tuple[str, str, str]


def inlined(onnx: Any, model: Any) -> Any:
    """The model without functions of its own; the model itself where it has none.

    What the bodies come to is counted first, so that a few functions that call each other often cost nothing.

    Raises:
        TooLarge: for too many operators, bytes or calls within calls.
        ValueError: for a function that is defined twice, has the name of an operator (which of the two is meant, the
            specification leaves open), calls itself, or is called with values that it does not take.
    """
    if not model.functions:
        return model
    bodies = {(body.domain, body.name, body.overload): body for body in model.functions}
    if len(bodies) < len(model.functions):
        raise ValueError("two of its functions have one name")
    if any(onnx.defs.has(body.name, body.domain) for body in model.functions):
        raise ValueError("one of its functions has the name of an operator")
    _Sizes(bodies).of(model.graph.node)
    whole = onnx.inliner.inline_local_functions(model)
    if whole.functions and any(_key(node) in bodies for node in every_node(whole.graph.node)):
        raise ValueError("its functions use another version of the operators than the model")
    del whole.functions[:]
    return whole


class _Sizes:
    """Operators and bytes that functions come to, those that they call included."""

    def __init__(self, bodies: dict[_Key, Any]) -> None:
        self.bodies, self.known = bodies, dict[_Key, tuple[int, int]]()
        self.under_way: list[_Key] = []

    def of(self, nodes: Iterable[Any]) -> tuple[int, int]:
        """Those of nodes, and of the bodies that take the place of some of them."""
        count, size = 0, 0
        for node in every_node(nodes):
            more = self._called(node) if _key(node) in self.bodies else (1, node.ByteSize())
            count, size = count + more[0], size + more[1]
            if count > MAX_NODES or size > MAX_BYTES:
                raise TooLarge(f"its functions come to more than {MAX_NODES} operators or {MAX_BYTES >> 20} MiB")
        return count, size

    def _called(self, node: Any) -> tuple[int, int]:
        key = _key(node)
        body, name = self.bodies[key], printable(node.op_type, 40)
        if len(node.input) > len(body.input) or len(node.output) > len(body.output):
            raise ValueError(f"its function {name} is called with more values than it takes or gives")
        if key in self.under_way:
            raise ValueError(f"its function {name} calls itself")
        if len(self.under_way) >= MAX_CALLS:
            raise TooLarge(f"its functions call each other {MAX_CALLS} deep")
        if key not in self.known:
            self.under_way.append(key)
            self.known[key] = self.of(body.node)
            self.under_way.pop()
        return self.known[key]


def _key(node: Any) -> _Key:
    return node.domain, node.op_type, node.overload


def every_node(nodes: Iterable[Any]) -> Iterator[Any]:
    """Nodes and those of the graphs inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from every_node(graph.node)
