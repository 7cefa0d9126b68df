"""Gradient flow per op: what arrives at its output, what leaves towards its input, point by point."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from maskaudit.errors import GradientError
from maskaudit.target import differentiate
from maskaudit.trace.observe import Observer
from maskaudit.trace.op_notes import RecordedOp
from maskaudit.trace.records import Flow
from maskaudit.trace.vocabulary import BLOCKING
from maskaudit.verdict.limits import BLOCKED_SLOPE

#: Norms up to this and down to its inverse are sums of squares that neither overflow nor vanish in float32.
PLAIN = 1e15


@dataclass
class _Tally:
    """What was seen at the nodes of an op: gradients, as numbered by `_Norms`, and how many units let them through."""

    arriving: list[int] = field(default_factory=list)
    leaving: list[int] = field(default_factory=list)
    blocked: list[Tensor] = field(default_factory=list)
    units: list[Tensor] = field(default_factory=list)


def margin_cotangent(raw: Tensor, pair: Tensor) -> Tensor:
    """Derivative of the margin with respect to the raw output (N, K): +1 at the runner-up, −1 at the label.

    `pair` (N, 2) are these two classes. A single output (N, 1) or (N,) speaks for class 1.
    """
    if raw[:1].numel() == 1:
        return (2 * pair[:, 0] - 1).to(raw).view_as(raw)
    signs = torch.tensor([1, -1], dtype=raw.dtype, device=raw.device)
    return torch.zeros_like(raw.detach()).scatter_(1, pair.to(raw.device), signs.expand(len(raw), 2))


def gradient_flow(
    observer: Observer, roots: Sequence[tuple[Tensor, Tensor]], points: int
) -> tuple[dict[int, Flow], Tensor | None]:
    """Flow through every op that a backward pass from `roots` reaches, by op index, and the gradient at the leaf.

    Args:
        observer: the recorded forward pass, graph still alive.
        roots: (tensor, cotangent) pairs to start from.
        points: N, the number of points; tensors whose leading dimension is a multiple of N are separated by point.

    The graph is kept; hooks on its nodes are removed. A backward pass that raises gives the flow up to there, and the
    observer is given the op.
    """
    found = _taken_back(observer, roots, points)
    return ({}, None) if found is None else (_flows(found.tallies, found.norms), found.gradient)


def arriving_norms(
    observer: Observer, roots: Sequence[tuple[Tensor, Tensor]], points: int
) -> tuple[dict[int, Tensor], Tensor | None]:
    """Norms (N,) of the gradient that arrives at the output of each op, by op index, and the gradient at the leaf.

    As `gradient_flow`, point by point; float64, infinite where an entry is not finite.
    """
    found = _taken_back(observer, roots, points)
    if found is None or not found.tallies:
        return {}, None
    squares, infinite = found.norms.squares()
    arriving = _summed(squares.where(infinite == 0, torch.inf), [tally.arriving for tally in found.tallies.values()])
    return dict(zip(found.tallies, arriving.sqrt(), strict=True)), found.gradient


@dataclass(frozen=True)
class _TakenBack:
    """What one backward pass showed: tallies by index of the op, their norms, and the gradient at the leaf."""

    tallies: dict[int, _Tally]
    norms: _Norms
    gradient: Tensor | None


def _taken_back(observer: Observer, roots: Sequence[tuple[Tensor, Tensor]], points: int) -> _TakenBack | None:
    """One backward pass under watch; None where no root is on the graph."""
    live = [(tensor, cotangent) for tensor, cotangent in roots if observer.live(tensor)]
    if not live:
        return None
    tallies: dict[int, _Tally] = {}
    norms = _Norms(points)
    gradient: Tensor | None = None
    own: list[Exception] = []
    with torch.enable_grad():
        total = pairing(live)
    failure: GradientError | None = None
    with _hooked(observer, tallies, norms, own):
        try:
            gradient, *_ = differentiate(total, observer.leaves, retain_graph=True)
        except GradientError as error:
            failure = error
    if own:
        raise own[0]
    if failure is not None:
        _blame(observer, total, str(failure))
    return _TakenBack(tallies, norms, gradient)


def _blame(observer: Observer, total: Tensor, sentence: str) -> None:
    """Find the op in which the backward pass raises, by another that notes where it enters and where it leaves."""
    entered: dict[Node, int] = {}
    handles: list[RemovableHandle] = []
    try:
        for op in observer.ops:
            for node in op.nodes:
                handles.append(node.register_prehook(lambda _, n=node, i=op.index: entered.update({n: i})))
                handles.append(node.register_hook(lambda *_, n=node: entered.pop(n) and None))
        with contextlib.suppress(GradientError):
            differentiate(total, observer.leaves, retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    if entered:
        observer.failed[list(entered.values())[-1]] = sentence
    else:
        observer.failure = sentence


def pairing(roots: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Scalar whose derivative with respect to each tensor is its cotangent.

    `torch.autograd.grad` takes cotangents itself, but imports torch's symbolic shapes and sympy for them, which costs
    many times what a trace does.
    """
    first, *others = [(tensor * cotangent).sum() for tensor, cotangent in roots]
    return sum(others, start=first)


@contextlib.contextmanager
def _hooked(observer: Observer, tallies: dict[int, _Tally], norms: _Norms, failures: list[Exception]) -> Iterator[None]:
    """Hooks on every node of every op; what goes wrong in them is noted, since the backward pass may fail as well."""
    handles: list[RemovableHandle] = []
    try:
        for op in observer.ops:
            nodes = [node for node in op.nodes if observer.reaches.get(node, False)]
            inner = {n for node in nodes for n, _ in node.next_functions if n is not None}
            for node in nodes:
                hook = _hook(observer, tallies, op, node, norms, exit_node=node not in inner)
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
    observer: Observer, tallies: dict[int, _Tally], op: RecordedOp, node: Node, norms: _Norms, *, exit_node: bool
) -> _NodeHook:
    leaving = [
        position
        for position, (below, _) in enumerate(node.next_functions)
        if below is not None and observer.reaches.get(below, False) and observer.owner.get(below) != op.index
    ]

    def record(grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor | None]) -> None:
        tally = tallies.setdefault(op.index, _Tally())
        outgoing = [grad_inputs[position] for position in leaving if position < len(grad_inputs)]
        tally.leaving += [norms.number(grad) for grad in outgoing if grad is not None]
        if exit_node:
            tally.arriving += [norms.number(grad) for grad in grad_outputs if grad is not None]
            if (op.name in BLOCKING or op.kind == "function") and len(outgoing) == 1 and len(grad_outputs) == 1:
                _count_blocked(tally, grad_outputs[0], outgoing[0])

    return record


def _count_blocked(tally: _Tally, arriving: Tensor | None, leaving: Tensor | None) -> None:
    if arriving is None or leaving is None or arriving.shape != leaving.shape:
        return
    tally.units.append(arriving.count_nonzero())
    tally.blocked.append((leaving.abs() < arriving.abs().mul_(BLOCKED_SLOPE)).count_nonzero())


class _Norms:
    """Squared norms per point of gradients; what leaves one op arrives at the next, so that each is met twice.

    The gradients are held: an address names one of them only as long as it lives, and where a norm turns out to be
    out of the range of float32 it is taken again.
    """

    def __init__(self, points: int) -> None:
        self.points = points
        self._numbers: dict[int, int] = {}
        self._held: list[Tensor] = []
        self._norms: list[Tensor] = []

    def number(self, grad: Tensor) -> int:
        """Place of the gradient in `squares`."""
        known = self._numbers.get(id(grad))
        if known is not None:
            return known
        self._numbers[id(grad)] = place = len(self._held)
        self._held.append(grad)
        norms = torch.linalg.vector_norm(self._rows(grad), dim=1)
        self._norms.append(norms if len(norms) == self.points else norms.expand(self.points))
        return place

    def squares(self) -> tuple[Tensor, Tensor]:
        """Squared norms of the finite parts, and the numbers of entries that are not finite: float64 (G, N), CPU."""
        by_type = {norms.dtype for norms in self._norms}
        same = self._norms if len(by_type) == 1 else [norms.double() for norms in self._norms]
        squares = torch.stack([norms.to(same[0].device) for norms in same]).cpu().double().square_()
        nonfinite = torch.zeros_like(squares)
        plain = ((squares > 1 / PLAIN**2) & (squares < PLAIN**2)).all(dim=1).tolist()
        for place, (grad, fine) in enumerate(zip(self._held, plain, strict=True)):
            if not fine or grad.dtype != torch.float32:
                squares[place], nonfinite[place] = self._exactly(grad)
        return squares, nonfinite

    def _exactly(self, grad: Tensor) -> tuple[Tensor, Tensor | float]:
        rows = self._rows(grad)
        squares = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu().square()
        if bool(torch.isfinite(squares).all()):
            return squares, 0.0
        nonfinite = (~torch.isfinite(rows)).sum(dim=1).double().cpu()
        rows = torch.nan_to_num(rows.double(), nan=0.0, posinf=0.0, neginf=0.0)
        return torch.linalg.vector_norm(rows, dim=1).cpu().square(), nonfinite

    def _rows(self, grad: Tensor) -> Tensor:
        """One row per point; a single one where the leading dimension does not tell points apart."""
        values = grad.detach()
        if values.is_complex():
            values = torch.view_as_real(values.resolve_conj())
        apart = bool(values.dim()) and values.shape[0] % self.points == 0 and bool(values.numel())
        return values.reshape(self.points if apart else 1, -1)


def _flows(tallies: dict[int, _Tally], norms: _Norms) -> dict[int, Flow]:
    if not tallies:
        return {}
    squares, infinite = norms.squares()
    arriving = _summed(squares, [tally.arriving for tally in tallies.values()])
    leaving = _summed(squares, [tally.leaving for tally in tallies.values()])
    nonfinite = _summed(infinite, [tally.leaving for tally in tallies.values()])
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
            nonfinite_share=spoilt[i] / norms.points,
            blocked_share=_share(tally.blocked, tally.units),
        )
        for i, (index, tally) in enumerate(tallies.items())
    }


def _summed(rows: Tensor, groups: list[list[int]]) -> Tensor:
    """The sum of some rows (G, N) for each group."""
    into = torch.tensor([place for place, group in enumerate(groups) for _ in group], dtype=torch.int64)
    which = torch.tensor([row for group in groups for row in group], dtype=torch.int64)
    return rows.new_zeros(len(groups), rows.shape[1]).index_add_(0, into, rows[which])


def _share(part: list[Tensor], whole: list[Tensor]) -> float | None:
    """Of two sums of counts; None where there was nothing to count."""
    total = sum(map(int, whole))
    return sum(map(int, part)) / total if total else None
