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
    stack: list[tuple[Node, list[Node] | None]] = [(start, None)]
    while stack:
        node, below = stack.pop()
        if below is not None:
            variable = getattr(node, "variable", None)
            own = variable is not None and any(variable is leaf for leaf in leaves)
            reaches[node] = own or any(reaches.get(n, False) for n in below)
            if variable is None:
                order.append(node)
        elif node not in reaches:
            reaches[node] = False
            below = [n for n, _ in node.next_functions if n is not None]
            stack.append((node, below))
            stack.extend((n, None) for n in below if n not in reaches)
    return order
