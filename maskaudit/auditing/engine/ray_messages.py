"""What travels to the nodes of a cluster, as bytes.

Tasks are packed one by one. What many of them share (the audited model, surrogates, the pool of starts) is not packed
into them: each of these lies once in the cluster's store, which brings it to a node once, and a task holds a number in
its place. Code of the user's own, which is installed on no node, travels with the model.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit.auditing.engine.interface import Done, Task, run_counted
from maskaudit.target import Target

#: Parcels per worker, so that none waits long for the last; bytes of tasks from which a parcel takes no more.
PER_WORKER, PARCEL_BYTES = 4, 32 * 2**20

#: What pickling raises for something that lives in this process only.
CANNOT_TRAVEL = (TypeError, AttributeError, RuntimeError, pickle.PicklingError)

#: Puts bytes into the cluster's store, and gives the reference to them.
Put = Callable[[bytes], Any]


@dataclass
class Parcel:
    """Some tasks in a row.

    Attributes:
        first: number of the first of them.
        tasks: each as bytes of something that is called without arguments.
        shared: where in the cluster's store that lies which they share; tasks hold its place in this list.
        crashes, lost, hung: times that it ended its worker, was lost with its node, or hung there.
    """

    first: int
    tasks: list[bytes]
    shared: list[Any]
    crashes: int = 0
    lost: int = 0
    hung: int = 0


@dataclass(frozen=True)
class BoundTask:
    """A task on a target that is to be opened for it."""

    target: Target
    task: Task[Any]

    def __call__(self) -> Done[Any]:
        """Do it."""
        with self.target:
            return run_counted(self.task, self.target)


class Packer:
    """Packs tasks and what they share.

    Args:
        cloudpickle: the pickling module of the cluster's library, which packs functions and classes by value.
        put: puts what is shared into the store.

    Attributes:
        stay: numbers of the tasks that cannot travel, since something in them lives in this process only.
    """

    def __init__(self, cloudpickle: Any, put: Put) -> None:
        self.cloudpickle, self.put = cloudpickle, put
        self.stay: list[int] = []
        self._held: dict[int, tuple[Any, Any]] = {}  # by identity; the object is kept, or another could get its place

    def parcels(self, tasks: Sequence[Task[Any]], target: Target, workers: int) -> Iterator[Parcel]:
        """All tasks on a target in order, packed one parcel after the other; those that cannot travel `stay`."""
        most = parcel_tasks(len(tasks), workers)
        common = {id(value) for task in tasks for value in getattr(task, "settings", {}).values()}
        modules, parcel, self.stay = self.modules(), Parcel(0, [], []), []
        for number, task in enumerate(tasks):
            try:
                with self._by_value(modules):
                    content = self._packed(BoundTask(target, task), common, parcel.shared)
            except CANNOT_TRAVEL:
                self.stay.append(number)
            else:
                parcel.tasks.append(content)
            ends = number in self.stay or len(parcel.tasks) == most or sum(map(len, parcel.tasks)) >= PARCEL_BYTES
            if ends or number == len(tasks) - 1:
                if parcel.tasks:
                    yield parcel
                parcel = Parcel(number + 1, [], [])

    def whole(self, job: Callable[[], Any]) -> Parcel:
        """A parcel of one job with all that it needs.

        Raises:
            One of `CANNOT_TRAVEL`: something in it lives in this process only.
        """
        with self._by_value(self.modules()):
            return Parcel(0, [self._packed(job, None, [])], [])

    def hold(self, target: Target) -> None:
        """Put what all tasks on a target share into the store.

        Raises:
            One of `CANNOT_TRAVEL`: something in it lives in this process only.
        """
        with self._by_value(self.modules()):
            self._packed(target, set(), [])

    def _shared(self, value: Any) -> Any:
        """Where a module or tensor lies in the store."""
        if id(value) not in self._held:
            self._held[id(value)] = (value, self.put(self._packed(value, None, [])))
        return self._held[id(value)][1]

    def _packed(self, value: Any, common: set[int] | None, shared: list[Any]) -> bytes:
        """Bytes of a value; modules in it, and tensors that are `common`, become places in `shared`."""
        packer, stream = self, io.BytesIO()

        class Pickler(self.cloudpickle.CloudPickler):  # type: ignore[name-defined, misc]
            def persistent_id(self, inner: Any) -> int | None:
                if common is None or not (
                    isinstance(inner, nn.Module) or (isinstance(inner, Tensor) and id(inner) in common)
                ):
                    return None
                place = packer._shared(inner)
                if place not in shared:
                    shared.append(place)
                return shared.index(place)

            def reducer_override(self, inner: Any) -> Any:
                if isinstance(inner, torch.jit.ScriptModule):
                    return _read_script, (_script_bytes(inner),)
                above = getattr(super(), "reducer_override", None)
                return above(inner) if above else NotImplemented

        Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        return stream.getvalue()

    def modules(self) -> list[ModuleType]:
        """What has been imported from the user's own files."""
        installed, known = _installed(), self.cloudpickle.list_registry_pickle_by_value()
        found = {}
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None) or ""
            name = getattr(module, "__name__", "__main__")  # that one travels by value anyway
            if file.endswith(".py") and not file.startswith(installed) and name not in (*known, "__main__"):
                found[name] = module
        return list(found.values())

    @contextlib.contextmanager
    def _by_value(self, modules: Sequence[ModuleType]) -> Iterator[None]:
        """Within, code of these modules is packed itself, not by its name."""
        for module in modules:
            self.cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in modules:
                self.cloudpickle.unregister_pickle_by_value(module)


def parcel_tasks(tasks: int, workers: int) -> int:
    """Most tasks of one parcel: sending one costs as much for many tasks as for one, and no worker should wait long."""
    return max(1, tasks // (PER_WORKER * max(1, workers)))


def unpacked(content: bytes, shared: Sequence[Any], fetch: Callable[[Any], Any]) -> Any:
    """The value again.

    Args:
        shared: where the parts lie that it shares with others; `fetch` brings one of them.
    """

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, place: int) -> Any:
            return fetch(shared[place])

    return Unpickler(io.BytesIO(content)).load()


def _installed() -> tuple[str, ...]:
    """Folders whose modules every node has: those of Python, of packages, and this one."""
    paths = sysconfig.get_paths()
    found = {paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages()}
    found |= {entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))}
    return tuple(os.path.join(entry, "") for entry in (*found, str(Path(__file__).parents[2])))


def _script_bytes(module: torch.jit.ScriptModule) -> bytes:
    stream = io.BytesIO()
    torch.jit.save(module, stream)
    return stream.getvalue()


def _read_script(content: bytes) -> torch.jit.ScriptModule:
    return torch.jit.load(io.BytesIO(content))
