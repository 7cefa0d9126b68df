"""Worker processes on this machine.

They are forked for each batch of tasks, so neither model nor tasks need be picklable, and they cost no copy. The
parent hands one task after the other to any worker that is free and knows which holds what: a worker that dies, or is
stopped by a signal, takes one task with it, which another does again.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import pickle
import signal
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic

import torch

from maskaudit import foreign
from maskaudit.auditing.engine.interface import (
    Done,
    EngineError,
    OnDone,
    Result,
    Task,
    failure,
    ignore,
    run_counted,
)
from maskaudit.errors import UsageError, message
from maskaudit.target import Target

#: Times that a task is tried before it is given up; the last time nothing else runs, in case memory was short.
TRIES = 3
#: Seconds that a finished worker is given to end by itself, and between two looks whether one was stopped.
PATIENCE, LOOK = 5.0, 1.0
#: Options of `prctl` (Linux): the signal that a process gets when its parent dies, and the name that `ps` shows.
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
#: The name of a worker, at most 15 bytes.
WORKER_NAME = "maskaudit-work"


class Processes:
    """Runs tasks in forked processes.

    Args:
        workers: how many, at least 1; each uses one thread.
        device: where the model is; only the CPU can be shared by forking.

    Raises:
        UsageError: for other devices, and where processes cannot be forked.
    """

    def __init__(self, workers: int, *, device: str = "cpu") -> None:
        if torch.device(device).type != "cpu":
            raise UsageError(f"--workers divides the work among CPU processes, not on {device}; leave it out there.")
        if "fork" not in multiprocessing.get_all_start_methods() or sys.platform == "darwin":
            raise UsageError("--workers needs a system on which processes can be forked safely (Linux); leave it out.")
        self.workers = workers

    def run(
        self, tasks: Sequence[Task[Result]], target: Target, on_done: OnDone[Result] = ignore
    ) -> list[Done[Result]]:
        """As `Engine.run`."""
        if not tasks:
            return []
        crew = _Crew(tasks, target, on_done)
        waiting = list(range(len(tasks)))
        for workers in (*[self.workers] * (TRIES - 1), 1):
            crew.work(waiting, min(workers, len(waiting)))
            if crew.failures:
                raise crew.failures[min(crew.failures)]
            waiting = [number for number in waiting if number not in crew.found]
            if not waiting:
                break
        else:
            raise EngineError(
                f"{len(waiting)} of {len(tasks)} parts of the work ended their worker process each of {TRIES} times "
                f"({crew.obituary}); was it short of memory? Try fewer --workers or a smaller --batch-size"
            )
        done = [crew.found[number] for number in range(len(tasks))]
        for part in done:
            target.ledger.add(part.spent)
        return done

    def close(self) -> None:
        """Nothing is held between two runs."""


@dataclass
class _Worker:
    """A process, this end of its line, and the number of the task that it holds."""

    process: Any
    line: Connection
    holds: int = -1


@dataclass
class _Crew(Generic[Result]):
    """Workers on the same tasks: what they found, what failed (by number of the task), how the last one died."""

    tasks: Sequence[Task[Result]]
    target: Target
    on_done: OnDone[Result]
    found: dict[int, Done[Result]] = field(default_factory=dict)
    failures: dict[int, Exception] = field(default_factory=dict)
    obituary: str = ""

    def work(self, numbers: Sequence[int], size: int) -> None:
        """Try every one of these tasks once; the dead are replaced as long as tasks wait."""
        waiting, staff = deque(numbers), list[_Worker]()
        try:
            while waiting or staff:
                while waiting and len(staff) < size:
                    staff.append(self._hired(staff))
                    self._hand(staff[-1], waiting)
                for worker in staff:
                    if foreign.stopped(worker.process.pid):
                        worker.process.kill()  # which its line reports
                for ready in wait([worker.line for worker in staff], LOOK):
                    worker = next(worker for worker in staff if worker.line is ready)
                    alive = self._heard(worker)
                    if self.failures:  # what comes later than a failure is not needed
                        waiting.clear()
                    if not alive or not waiting:
                        staff.remove(worker)
                        _end(worker)
                    else:
                        self._hand(worker, waiting)
        finally:
            for worker in staff:
                _end(worker)

    def _hired(self, staff: Sequence[_Worker]) -> _Worker:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        inherited = [here, *(worker.line for worker in staff)]
        process = context.Process(target=_serve, args=(there, inherited, self.tasks, self.target), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)

    def _hand(self, worker: _Worker, waiting: deque[int]) -> None:
        worker.holds = waiting.popleft()
        with contextlib.suppress(OSError):  # already dead: its connection reports that when it is read
            worker.line.send(worker.holds)

    def _heard(self, worker: _Worker) -> bool:
        """Take what a worker says of its task; False when it is dead."""
        try:
            kind, content = pickle.loads(worker.line.recv_bytes())  # bytes of our own child
        except (EOFError, OSError):
            worker.process.join(PATIENCE)
            code = worker.process.exitcode
            self.obituary = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
            return False
        if kind == "done":
            self.found[worker.holds] = content
            self.on_done(worker.holds, content)
        else:
            self.failures[worker.holds] = failure(*content)
        return True


def _serve(line: Connection, inherited: Sequence[Connection], tasks: Sequence[Task[Any]], target: Target) -> None:
    """A worker: the tasks that it is handed, one after the other, until the line is closed."""
    _declare_worker()
    torch.set_num_threads(1)  # before any operation: the parent's threads do not exist here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:  # else no one would see that the parent is gone
        other.close()
    with contextlib.suppress(EOFError, OSError):
        while True:
            number = line.recv()
            try:
                answer = ("done", run_counted(tasks[number], target))
            except Exception as error:  # whatever the attack or the model raised is the parent's to judge
                answer = ("failed", (type(error).__name__, message(error)))  # type: ignore[assignment]
            line.send_bytes(pickle.dumps(answer))


def _declare_worker() -> None:
    """Give this process a name, and have it killed when its parent dies: no process goes on computing in vain."""
    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NAME, WORKER_NAME.encode())


def _end(worker: _Worker) -> None:
    """Make sure that a worker is gone."""
    worker.line.close()
    worker.process.join(0.1)
    if worker.process.is_alive():
        worker.process.terminate()
        worker.process.join(PATIENCE)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.process.close()
