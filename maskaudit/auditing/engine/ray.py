"""A Ray cluster: tasks become remote ones, several in one parcel. The package ray is optional, and on every node.

A task that is lost with its worker or its node, or hangs there, is done again. What a task raises is the audit's to
judge, as in every engine, and is not tried again. Results depend on the program, on torch and on what the processor can
do; a node that differs in one of them is refused by name.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic

import torch

from maskaudit.auditing.digest import machine
from maskaudit.auditing.engine.interface import (
    Done,
    EngineError,
    OnDone,
    Result,
    Task,
    UnfitError,
    failure,
    ignore,
    run_counted,
)
from maskaudit.auditing.engine.ray_heartbeat import BEAT, ParcelWatch, Sign, Signs
from maskaudit.auditing.engine.ray_messages import CANNOT_TRAVEL, Packer, Parcel
from maskaudit.auditing.engine.ray_node import difference, end_process, what_it_is, work
from maskaudit.errors import ModelError, UsageError, describe_error
from maskaudit.target import Target

#: The address that starts a cluster on this machine, and ends it.
LOCAL = "local"
#: Times that a parcel may end its worker before it is given up, and may be lost with its node.
CRASHES, LOSSES = 3, 10
#: Parcels under way per worker: the next is there when one is done.
AHEAD = 2
#: Seconds in which a node must say what it is; its first process loads torch.
ASKING = 120.0


class Ray:
    """Runs tasks on a cluster, one thread and one CPU each.

    Args:
        address: of the cluster, such as `auto` or `ray://head:10001`; `local` starts one here. Where this process is
            connected already, that connection is used, and left as it is.
        device: where the model is; nodes compute on their CPUs.
        memory: most bytes that each process of a node may take.
        call_timeout: seconds that one call of the model may take; None adapts to the calls seen, 0 allows any time.

    Raises:
        UsageError: without the package, when the cluster cannot be reached, or when a node is of another kind.
    """

    def __init__(
        self, address: str, *, device: str = "cpu", memory: int | None = None, call_timeout: float | None = None
    ) -> None:
        if torch.device(device).type != "cpu":
            raise UsageError(f"--ray divides the work among CPUs, not on {device}; leave it out there.")
        self.ray: Any = import_ray()
        self._ends = not self.ray.is_initialized()
        if self._ends:
            _connect(self.ray, address)
        try:
            self._watch = ParcelWatch(call_timeout)
            self._signs = self.ray.remote(num_cpus=0, max_restarts=-1)(Signs).remote()
            send = self.ray.remote(max_retries=0, num_cpus=1)(work).remote
            self._send = partial(send, machine(), memory, self._signs)
            self.packer = Packer(self.ray.cloudpickle, self.ray.put)
            _check_nodes(self.ray)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""
        if self._ends:
            self._ends = False
            self.ray.shutdown()

    def run(
        self, tasks: Sequence[Task[Result]], target: Target, on_done: OnDone[Result] = ignore
    ) -> list[Done[Result]]:
        """As `Engine.run`; tasks that live in this process only are run here.

        Raises:
            UnfitError: when the model cannot be sent, or a node that came later is of another kind.
        """
        try:
            crew = self._worked(tasks, target, on_done)
        except (self.ray.exceptions.RayError, ConnectionError) as error:
            raise EngineError(f"the Ray cluster did not finish the work: {_first_line(error)}") from error
        before = target.ledger.copy()
        for number in self.packer.stay:
            crew.do_here(number, tasks[number], target)
        target.ledger.forwards, target.ledger.backwards = before.forwards, before.backwards
        if crew.failures:
            raise crew.failures[min(crew.failures)]
        done = [crew.found[number] for number in range(len(tasks))]
        for part in done:
            target.ledger.add(part.spent)
        return done

    def call(self, parcel: Parcel, call_timeout: float | None = None) -> Any:
        """What the one job of a parcel returns, where it is done; `call_timeout` as for a cluster.

        Raises:
            EngineError, UnfitError: as `run`.
            ModelError, TaskError, …: what it raised.
        """
        crew = self._crew(ignore, 1, ParcelWatch(call_timeout))
        crew.work(iter([parcel]))
        if crew.failures:
            raise crew.failures[0]
        return crew.found[0]

    @property
    def cpus(self) -> int:
        """CPUs of all nodes."""
        return max(1, int(self.ray.cluster_resources().get("CPU", 1)))

    def _worked(self, tasks: Sequence[Task[Result]], target: Target, on_done: OnDone[Result]) -> _ParcelCrew[Result]:
        """What became of all tasks that can travel."""
        try:
            self.packer.hold(target)
        except CANNOT_TRAVEL as error:
            raise UnfitError(
                f"The model cannot be sent to the nodes of a cluster ({describe_error(error)}); leave --ray out."
            ) from error
        workers = self.cpus
        crew = self._crew(on_done, AHEAD * workers, self._watch)
        crew.work(self.packer.parcels(tasks, target, workers))
        return crew

    def _crew(self, on_done: OnDone[Result], most: int, watch: ParcelWatch) -> _ParcelCrew[Result]:
        return _ParcelCrew(self.ray, self._send, self._signs, watch, on_done, most)


class _ParcelCrew(Generic[Result]):
    """Parcels on their way: what they found, and what failed, by number of the task."""

    def __init__(
        self, ray: Any, send: Callable[..., Any], signs: Any, watch: ParcelWatch, on_done: OnDone[Result], most: int
    ) -> None:
        self.ray, self.send, self.signs, self.watch, self.on_done, self.most = ray, send, signs, watch, on_done, most
        self.found: dict[int, Done[Result]] = {}
        self.failures: dict[int, Exception] = {}
        self.flying: dict[Any, tuple[str, Parcel]] = {}
        self.looked = time.monotonic()

    def work(self, parcels: Iterator[Parcel]) -> None:
        """Have them all done, or all before the first failure."""
        try:
            self._send(parcels)
            while self.flying:
                ready, _ = self.ray.wait(list(self.flying), num_returns=1, timeout=BEAT)
                for answer in ready:
                    self._heard(answer, self.flying.pop(answer)[1])
                self._send(parcels)
                self._look()
        finally:
            for answer in self.flying:
                with contextlib.suppress(Exception):  # where the connection is gone, so are the tasks
                    self.ray.cancel(answer, force=True)

    def do_here(self, number: int, task: Task[Result], target: Target) -> None:
        """Do a task that cannot travel, unless an earlier one failed."""
        if min(self.failures, default=number) < number:
            return
        try:
            self.found[number] = run_counted(task, target)
        except Exception as error:
            self.failures[number] = error
        else:
            self.on_done(number, self.found[number])

    def _send(self, parcels: Iterator[Parcel]) -> None:
        while len(self.flying) < self.most and not self.failures:  # what comes later than a failure is not needed
            parcel = next(parcels, None)
            if parcel is None:
                return
            self._hand(parcel)

    def _hand(self, parcel: Parcel) -> None:
        name = os.urandom(8).hex()
        self.flying[self.send(name, parcel.tasks, parcel.shared)] = name, parcel

    def _look(self) -> None:
        """End workers that hang, and have what they held done again.

        Raises:
            ModelError: when that hung before, or nothing in the cluster moves.
        """
        if time.monotonic() - self.looked < BEAT:
            return
        self.looked = time.monotonic()
        number, signs = 1, dict[str, Sign]()
        with contextlib.suppress(self.ray.exceptions.RayError):  # no news: then nothing moves
            number, signs = self.ray.get(self.signs.last.remote(), timeout=ASKING)
        flying = {name: (answer, parcel) for answer, (name, parcel) in self.flying.items()}
        for name in self.watch.late(number, {name: sign for name, sign in signs.items() if name in flying}):
            answer, parcel = flying.get(name, (None, None))
            if parcel is None or parcel.hung:
                raise ModelError(
                    f"The model, or the nodes of the cluster, did not answer within {self.watch.limit:.0f} s; allow "
                    "more time per call with --call-timeout SECONDS."
                )
            del self.flying[answer]
            self._end(signs[name])
            parcel.hung += 1
            self._hand(parcel)

    def _end(self, sign: Sign) -> None:
        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(sign.node, soft=False)
        end = self.ray.remote(max_retries=0, num_cpus=0, scheduling_strategy=strategy)(end_process)
        end.remote(sign.process)

    def _heard(self, answer: Any, parcel: Parcel) -> None:
        """Take what a parcel brought; one that was lost is sent again.

        Raises:
            EngineError, UnfitError: when it was lost too often, or cannot be done there at all.
        """
        errors = self.ray.exceptions
        try:
            done, failed = self.ray.get(answer)
        except errors.RayTaskError as error:
            raise EngineError(f"a node could not begin its part of the work: {_first_line(error)}") from error
        except errors.RayError as error:
            self._again(parcel, error)
            return
        for number, part in enumerate(done, parcel.first):
            self.found[number] = part
            self.on_done(number, part)
        if failed:
            kind, name, message = failed
            if kind != "task":
                raise UnfitError(message)
            self.failures[parcel.first + len(done)] = failure(name, message)

    def _again(self, parcel: Parcel, error: Exception) -> None:
        if isinstance(error, (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.OutOfMemoryError)):
            parcel.crashes += 1
        else:
            parcel.lost += 1
        if parcel.crashes >= CRASHES or parcel.lost >= LOSSES:
            tries = f"ended its worker process {parcel.crashes} times and was lost with its node {parcel.lost} times"
            raise EngineError(
                f"a part of the work {tries} ({_first_line(error)}); was it short of memory? Try a smaller --batch-size"
            ) from error
        self._hand(parcel)


def import_ray() -> Any:
    """The package.

    Raises:
        UsageError: where it cannot be imported.
    """
    try:
        return importlib.import_module("ray")
    except Exception as error:  # missing, or built for another Python
        raise UsageError(
            f"--ray needs the package ray, which cannot be imported ({describe_error(error)}); "
            "install it with: pip install 'maskaudit[ray]'"
        ) from error


def _connect(ray: Any, address: str) -> None:
    """Reach a cluster, or start one; what the library does to signals is undone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = {"include_dashboard": False} if address == LOCAL else {"address": address}
    with _kept_signals():
        try:
            ray.init(**where, log_to_driver=False, configure_logging=False)
        except Exception as error:  # wrong addresses, versions and networks each fail in their own way
            raise UsageError(f"No Ray cluster answers at {address!r} ({_first_line(error)}).") from error


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError, TypeError):  # not the main thread, or a handler that C code set
                signal.signal(number, handler)


def _check_nodes(ray: Any) -> None:
    """Ask every node what it is.

    Raises:
        UsageError: when one does not answer, or is of another kind than this machine.
    """
    strategies = ray.util.scheduling_strategies
    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            there = strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ask = ray.remote(max_retries=0, num_cpus=0, scheduling_strategy=there)(what_it_is)
            asked[f"{node['NodeName']} ({node['NodeID'][:8]})"] = ask.remote()
    if not asked:
        raise UsageError("The Ray cluster has no CPUs to work on; start a node with some.")
    for name, answer in asked.items():
        try:
            theirs = ray.get(answer, timeout=ASKING)
        except Exception as error:  # no maskaudit there, another one without this function, no answer
            raise UsageError(
                f"The node {name} cannot run maskaudit ({_first_line(error)}); install the same packages there."
            ) from error
        if differs := difference(theirs, f"node {name}"):
            raise UsageError(differs)


def _first_line(error: Exception) -> str:
    """The sentence of an error; of one that Ray wraps, the last line of its traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    wrapped = type(error).__name__.startswith("RayTaskError") or (len(lines) > 1 and "Traceback" in str(error))
    return (lines[-1] if wrapped else lines[0]) if lines else type(error).__name__
