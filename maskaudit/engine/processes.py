"""Worker processes on this machine.

They are forked for each attack, so the model need not be picklable and costs no copy. A worker takes one
shard after the other from a pipe; nobody holds a lock, so a worker that dies takes nobody with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import struct
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from maskaudit.attacks.interface import AttackUnavailable, Attempt
from maskaudit.engine.interface import Done, EngineError, Job, divisible, joined, run_counted
from maskaudit.errors import ModelError, UsageError
from maskaudit.target import PassLedger, Target

#: A shard's number in the pipe.
NUMBER = struct.Struct("<i")
#: Most shard numbers that a pipe takes without a reader (Linux: 64 KiB).
PIPE_NUMBERS = 8192
#: Seconds that a finished worker is given to end by itself.
PATIENCE = 5.0
#: Failures that are passed on as what they were.
PASSED_ON: dict[str, type[Exception]] = {"ModelError": ModelError, "AttackUnavailable": AttackUnavailable}


class Processes:
    """Runs the shards of a job in forked processes.

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

    def run(self, job: Job, target: Target) -> Attempt:
        """As `Engine.run`."""
        shards = job.shards() if divisible(job, target) else []
        if not shards:
            return job.run(target)
        done: list[Done] = []
        for start in range(0, len(shards), PIPE_NUMBERS):
            done += self._run(shards[start : start + PIPE_NUMBERS], target)
        return joined(done, target)

    def _run(self, shards: Sequence[Job], target: Target) -> list[Done]:
        context = multiprocessing.get_context("fork")
        queue, feed = os.pipe()
        os.write(feed, b"".join(NUMBER.pack(number) for number in range(len(shards))))
        os.close(feed)
        processes: dict[Connection, Any] = {}
        try:
            for _ in range(min(self.workers, len(shards))):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(sender, queue, shards, target), daemon=True)
                process.start()
                sender.close()
                processes[receiver] = process
            return _collect(processes, len(shards))
        finally:
            os.close(queue)
            for receiver, process in processes.items():
                _end(receiver, process)


def _work(sender: Connection, queue: int, shards: Sequence[Job], target: Target) -> None:
    """A worker: shards until there are none left, each result to the parent."""
    torch.set_num_threads(1)  # before any operation: the parent's threads do not exist here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    with contextlib.suppress(BrokenPipeError):
        while True:
            taken = os.read(queue, NUMBER.size)
            if len(taken) < NUMBER.size:
                sender.send(("end", None))
                return
            (number,) = NUMBER.unpack(taken)
            try:
                done = run_counted(shards[number], target)
            except Exception as error:  # whatever the attack or the model raised is the parent's to judge
                sender.send(("failed", (type(error).__name__, str(error))))
                return
            attempt, spent = done.attempt, done.spent
            arrays = (attempt.examples, attempt.first_success, attempt.queries)
            plain = [tensor.detach().contiguous().numpy() for tensor in arrays]
            sender.send(("done", (number, plain, (spent.forwards, spent.backwards))))


def _collect(processes: dict[Connection, Any], count: int) -> list[Done]:
    """All shards in order; the first failure ends the collection."""
    found: dict[int, Done] = {}
    open_ends = set(processes)
    while open_ends:
        for receiver in wait(list(open_ends)):
            assert isinstance(receiver, Connection)
            try:
                kind, content = receiver.recv()
            except (EOFError, OSError):
                raise EngineError(_obituary(processes[receiver])) from None
            if kind == "failed":
                name, message = content
                raise PASSED_ON.get(name, EngineError)(message if name in PASSED_ON else f"{name}: {message}")
            if kind == "end":
                open_ends.discard(receiver)
                continue
            number, arrays, spent = content
            attempt = Attempt(*(torch.from_numpy(array) for array in arrays))
            found[number] = Done(attempt, PassLedger(*spent))
    if len(found) != count:
        raise EngineError(f"{count - len(found)} of {count} shards were lost by the workers.")
    return [found[number] for number in range(count)]


def _obituary(process: Any) -> str:
    process.join(PATIENCE)
    code = process.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
    return f"a worker process ended before its work was done ({how}); was it short of memory? Try fewer --workers"


def _end(receiver: Connection, process: Any) -> None:
    """Make sure that a worker is gone."""
    receiver.close()
    process.join(0.1)
    if process.is_alive():
        process.terminate()
        process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
