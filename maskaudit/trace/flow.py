"""Gradient flow per op: what arrives at its output, what leaves towards its input, point by point."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from maskaudit.attacks.losses import wrong_class
from maskaudit.trace.observe import Observer
from maskaudit.trace.records import Flow

#: A unit is blocked when its arriving gradient shrinks by more than this factor; the slope of tanh
#: falls below it beyond |x| = 3, that of the logistic function beyond |x| = 4.6.
BLOCKED = 1e-2

#: Norms up to this and down to its inverse are sums of squares that neither overflow nor vanish in float32.
PLAIN = 1e15


@dataclass
class _Tally:
    """Squared norms per point (N,), summed over the nodes of an op."""

    arriving: Tensor
    leaving: Tensor
    nonfinite: Tensor
    blocked: int = 0
    units: int = 0


def margin_cotangent(raw: Tensor, y: Tensor) -> Tensor:
    """Derivative of the margin with respect to the raw output (N, K): +1 at the runner-up, −1 at the label."""
    raw, y = raw.detach(), y.to(raw.device)
    wrong = wrong_class(raw.float(), y, 0)
    cotangent, rows = torch.zeros_like(raw), torch.arange(len(y), device=raw.device)
    cotangent[rows, wrong] = 1
    cotangent[rows, y] = -1
    return cotangent


def gradient_flow(
    observer: Observer, roots: Sequence[tuple[Tensor, Tensor]], points: int
) -> tuple[dict[int, Flow], Tensor | None]:
    """Flow through every op that a backward pass from `roots` reaches, by op index, and the gradient at the leaf.

    Args:
        observer: the recorded forward pass, graph still alive.
        roots: (tensor, cotangent) pairs to start from.
        points: N, the number of points; tensors whose leading dimension is a multiple of N are told apart by point.

    The graph is kept; hooks on its nodes are removed. A backward pass that raises gives no flow.
    """
    live = [(tensor, cotangent) for tensor, cotangent in roots if observer.live(tensor)]
    if not live:
        return {}, None
    tallies: dict[int, _Tally] = {}
    gradient: Tensor | None = None
    own: list[Exception] = []
    with torch.enable_grad():
        total = pairing(live)
    with _hooked(observer, tallies, points, own), contextlib.suppress(RuntimeError, NotImplementedError):
        gradient, *_ = torch.autograd.grad(total, observer.leaves, retain_graph=True, allow_unused=True)
    if own:
        raise own[0]
    return _flows(tallies, points), gradient


def pairing(roots: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Scalar whose derivative with respect to each tensor is its cotangent.

    `torch.autograd.grad` takes cotangents itself, but imports torch's symbolic shapes and sympy for them, which costs
    many times what a trace does.
    """
    first, *others = [(tensor * cotangent).sum() for tensor, cotangent in roots]
    return sum(others, start=first)


@contextlib.contextmanager
def _hooked(observer: Observer, tallies: dict[int, _Tally], points: int, failures: list[Exception]) -> Iterator[None]:
    """Hooks on every node of every op; what goes wrong in them is noted, since the backward pass may fail as well."""
    handles: list[RemovableHandle] = []
    norms = _Norms(points)
    try:
        for op in observer.ops:
            nodes = [node for node in op.nodes if observer.reaches.get(node, False)]
            inner = {n for node in nodes for n, _ in node.next_functions if n is not None}
            for node in nodes:
                hook = _hook(observer, tallies, op.index, node, norms, exit_node=node not in inner)
                handles.append(node.register_hook(_noting(hook, failures)))
        yield
    finally:
        for handle in handles:
            handle.remove()


_NodeHook = Callable[[Sequence[Tensor | None], Sequence[Tensor | None]], None]


def _noting(hook: _NodeHook, failures: list[Exception]) -> _NodeHook:
    def noting(grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor | None]) -> None:
        try:
            hook(grad_inputs, grad_outputs)
        except Exception as error:
            failures.append(error)
            raise

    return noting


def _hook(
    observer: Observer, tallies: dict[int, _Tally], index: int, node: Node, norms: _Norms, *, exit_node: bool
) -> _NodeHook:
    leaving = [
        position
        for position, (below, _) in enumerate(node.next_functions)
        if below is not None and observer.reaches.get(below, False) and observer.owner.get(below) != index
    ]

    def record(grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor | None]) -> None:
        tally = tallies.get(index)
        if tally is None:
            tally = tallies[index] = _Tally(*torch.zeros(3, norms.points, dtype=torch.float64))
        if exit_node:
            for grad in grad_outputs:
                if grad is not None:
                    tally.arriving += norms.of(grad)[0]
        outgoing = [grad_inputs[position] for position in leaving if position < len(grad_inputs)]
        for grad in outgoing:
            if grad is not None:
                squares, nonfinite = norms.of(grad)
                tally.leaving += squares
                if nonfinite is not None:
                    tally.nonfinite += nonfinite
        if exit_node and len(outgoing) == 1 and len(grad_outputs) == 1:
            _count_blocked(tally, grad_outputs[0], outgoing[0])

    return record


def _count_blocked(tally: _Tally, arriving: Tensor | None, leaving: Tensor | None) -> None:
    if arriving is None or leaving is None or arriving.shape != leaving.shape:
        return
    tally.units += int(arriving.count_nonzero())
    tally.blocked += int((leaving.abs() < arriving.abs().mul_(BLOCKED)).sum())


class _Norms:
    """Squared norms per point of gradients; what leaves one op arrives at the next, so that each is asked for twice.

    The gradients are held while the backward pass runs: an address names one of them only as long as it lives.
    """

    def __init__(self, points: int) -> None:
        self.points = points
        self._known: dict[int, tuple[Tensor, tuple[Tensor, Tensor | None]]] = {}

    def of(self, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """The squared norm of the finite part, float64 (N,) on the CPU, and the number of entries that are not finite.

        The second is None where all are finite.
        """
        known = self._known.get(id(grad))
        if known is None:
            known = self._known[id(grad)] = grad, self._measured(grad.detach())
        return known[1]

    def _measured(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        rows = self._rows(torch.view_as_real(values.resolve_conj()) if values.is_complex() else values)
        norms = torch.linalg.vector_norm(rows, dim=1).cpu().double()
        if rows.dtype != torch.float32 or not bool(((norms > 1 / PLAIN) & (norms < PLAIN)).all()):
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu()
        squares = norms.square()
        nonfinite: Tensor | None = None
        if not bool(torch.isfinite(squares).all()):
            nonfinite = self._per_point((~torch.isfinite(rows)).sum(dim=1).double().cpu())
            rows = torch.nan_to_num(rows.double(), nan=0.0, posinf=0.0, neginf=0.0)
            squares = torch.linalg.vector_norm(rows, dim=1).cpu().square()
            nonfinite = nonfinite if bool(nonfinite.any()) else None
        return self._per_point(squares), nonfinite

    def _rows(self, values: Tensor) -> Tensor:
        """One row per point; a single one where the leading dimension does not tell points apart."""
        apart = bool(values.dim()) and values.shape[0] % self.points == 0 and bool(values.numel())
        return values.reshape(self.points if apart else 1, -1)

    def _per_point(self, row: Tensor) -> Tensor:
        return row if len(row) == self.points else row.expand(self.points)


def _flows(tallies: dict[int, _Tally], points: int) -> dict[int, Flow]:
    if not tallies:
        return {}
    arriving = torch.stack([tally.arriving for tally in tallies.values()])
    leaving = torch.stack([tally.leaving for tally in tallies.values()])
    nonfinite = torch.stack([tally.nonfinite for tally in tallies.values()])
    arrived = arriving > 0
    counts = arrived.sum(dim=1).tolist()
    killed = (arrived & (leaving == 0)).sum(dim=1).tolist()
    norms_in, norms_out = torch.stack([arriving, leaving]).sqrt().median(dim=2).values.tolist()
    spoilt = (nonfinite > 0).sum(dim=1).tolist()
    return {
        index: Flow(
            points=counts[i],
            norm_in=norms_in[i],
            norm_out=norms_out[i],
            zero_share=killed[i] / counts[i] if counts[i] else 0.0,
            nonfinite_share=spoilt[i] / points if points else 0.0,
            blocked_share=tally.blocked / tally.units if tally.units else None,
        )
        for i, (index, tally) in enumerate(tallies.items())
    }
