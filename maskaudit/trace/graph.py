"""The autograd graph that a forward pass leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import Node


def new_nodes(start: Node, reaches: dict[Node, bool], leaves: Sequence[Tensor]) -> list[Node]:
    """Nodes from `start` back to those already known, inputs first, without those that only hold a leaf.

    Args:
        start: the node to begin with.
        reaches: the nodes already known, and whether they lead back to one of `leaves`; the new ones are added.
        leaves: the tensors whose gradient is of interest.
    """
    order: list[Node] = []
    stack = [(start, False)]
    while stack:
        node, expanded = stack.pop()
        if node in reaches and not expanded:
            continue
        below = [n for n, _ in node.next_functions if n is not None]
        if expanded:
            variable = getattr(node, "variable", None)
            own = variable is not None and any(variable is leaf for leaf in leaves)
            reaches[node] = own or any(reaches.get(n, False) for n in below)
            if variable is None:
                order.append(node)
            continue
        reaches[node] = False
        stack.append((node, True))
        stack.extend((n, False) for n in below if n not in reaches)
    return order
