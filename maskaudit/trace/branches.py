"""The branches of a network: what runs side by side between two places where all ways meet."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from maskaudit.trace.observe import Observer
from maskaudit.trace.op_notes import RecordedOp
from maskaudit.trace.records import Fork


def trunk(observer: Observer, raw: Tensor, *, live: bool = True) -> list[int]:
    """Indices of the ops through which every way leads, from the output to the input.

    Args:
        observer: the record of a forward pass.
        raw: the model's output.
        live: ways of the gradient; else those of the data, cuts included.
    """
    output = observer.maker(raw)
    if output is None or output < 0:
        return []
    ops, way, waiting = observer.ops, set[int](), [output]
    while waiting:
        index = waiting.pop()
        if index not in way and (ops[index].live_out if live else ops[index].carries):
            way.add(index)
            waiting.extend(ops[index].parents)
    last = dict.fromkeys((-1, *way), -1)  # the last op that reads what an op, or the input, made
    for index in sorted(way):
        parents = [parent for parent in ops[index].parents if parent in way]
        for parent in (*parents, *((-1,) if not parents or observer.reads_input(ops[index]) else ())):
            last[parent] = index
    found, furthest = [], last[-1]
    for index in sorted(way):
        if furthest <= index:
            found.append(index)
        furthest = max(furthest, last[index])
    return found[::-1]


def forks(observer: Observer, raw: Tensor) -> tuple[Fork, ...]:
    """Where data part and meet again on at least two ways, one of which a module ends; in the order of the pass."""
    ends = trunk(observer, raw, live=False)[::-1]
    found = []
    for start, join in zip((-1, *ends), ends, strict=False):
        ways = _ways(observer, start, join)
        names = []
        for way in ways:
            others = [op for other in ways if other is not way for op in other]
            names += [_module(observer, way, [*others, observer.ops[join]])]
        direct = start in observer.ops[join].parents or (start < 0 and observer.reads_input(observer.ops[join]))
        named = tuple(name for name in names if name is not None)
        if len(ways) + direct > 1 and named:
            found.append(Fork(observer.ops[join].location, named, len(ways) + direct - len(named)))
    return tuple(found)


def _ways(observer: Observer, start: int, join: int) -> list[list[RecordedOp]]:
    """The ops that lie between two ops of the trunk, one list for each way that shares no data with the others."""
    ops, inside, waiting = observer.ops, set[int](), list(observer.ops[join].parents)
    while waiting:
        index = waiting.pop()
        if start < index < join and index not in inside and ops[index].carries:
            inside.add(index)
            waiting.extend(ops[index].parents)
    group: dict[int, int] = {}
    for index in sorted(inside):
        joined = {group[parent] for parent in ops[index].parents if parent in inside}
        group[index] = min(joined, default=index)
        group |= {other: group[index] for other, now in group.items() if now in joined}
    return [[ops[i] for i in sorted(inside) if group[i] == first] for first in sorted(set(group.values()))]


def _module(observer: Observer, way: list[RecordedOp], others: Iterable[RecordedOp]) -> str | None:
    """The outermost module that ends a way and in which none of the other ops runs."""
    elsewhere = {part for op in others for part in modules_around(op.module)}
    return next((p for p in modules_around(way[-1].module) if p not in elsewhere and p in observer.modules), None)


def modules_around(path: str) -> list[str]:
    """A module and all that it lies in, the model itself excepted: a.b.c → a, a.b, a.b.c."""
    parts = path.split(".") if path else []
    return [".".join(parts[: k + 1]) for k in range(len(parts))]
