"""What a node of a Ray cluster does: say what it is, and work off parcels."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
from collections import OrderedDict
from typing import Any

import torch

from maskaudit.auditing.digest import machine
from maskaudit.auditing.engine.ray_heartbeat import beating
from maskaudit.auditing.engine.ray_messages import unpacked
from maskaudit.errors import describe_error, message
from maskaudit.target.memory import limited

#: Models and tensors that a worker keeps between parcels.
KEPT = 8
#: What a parcel brought: its results in order up to a failure, and that failure (kind, name, message), if any.
Answer = tuple[list[Any], tuple[str, str, str] | None]

_kept: OrderedDict[str, Any] = OrderedDict()


def what_it_is() -> dict[str, str]:
    """What tells the machine of a node from others: `machine()`, asked there."""
    return machine()


def difference(theirs: dict[str, str], node: str, ours: dict[str, str] | None = None) -> str:
    """A sentence that names how a machine differs from this one; "" where it does not."""
    here = ours or machine()
    for key in here:
        if theirs.get(key) != here[key]:
            return (
                f"The {node} has {key} {theirs.get(key, 'unknown')}, and here it is {here[key]}: results would differ; "
                "take that node out of the cluster, or install the same there."
            )
    return ""


def _fetched(place: Any) -> Any:
    """A shared part, unpacked once per process."""
    ray: Any = importlib.import_module("ray")
    key = place.hex()
    if key not in _kept:
        _kept[key] = pickle.loads(ray.get(place))  # bytes of the audit that this task belongs to
    _kept.move_to_end(key)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return _kept[key]


def work(
    ours: dict[str, str], memory: int | None, signs: Any, name: str, tasks: list[bytes], shared: list[Any],
) -> Answer:  # fmt: skip
    """A parcel on a node: its tasks in order, up to the first that fails; `signs` hears of it under this name."""
    torch.set_num_threads(1)
    with limited(memory), beating(signs, name):
        return _done(ours, tasks, shared)


def end_process(process: int) -> None:
    """End a worker of this node that hangs."""
    with contextlib.suppress(OSError):
        os.kill(process, signal.SIGKILL)


def _done(ours: dict[str, str], tasks: list[bytes], shared: list[Any]) -> Answer:
    if differs := difference(machine(), f"node {os.uname().nodename}", ours):
        return [], ("machine", "", differs)
    done = list[Any]()
    for content in tasks:
        try:
            job = unpacked(content, shared, _fetched)
        except Exception as error:  # code that is not there raises what it likes
            sentence = f"The node {os.uname().nodename} cannot open the model ({describe_error(error)})"
            return done, ("machine", "", f"{sentence}; install there what it needs.")
        try:
            done.append(job())
        except Exception as error:  # judged where the audit runs
            return done, ("task", type(error).__name__, message(error))
    return done, None
