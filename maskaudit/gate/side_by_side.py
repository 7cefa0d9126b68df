"""Several models of a gate at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

#: Seconds that the processes are given to write what they have when the user wants to stop.
ENDING = 90.0


def in_turn(
    task: Callable[[int], Result], numbers: Iterable[int], jobs: int, begun: Callable[[int], None]
) -> Iterator[tuple[int, Result]]:
    """Do a task for each number: here, one after the other, or in `jobs` processes; results as they come.

    Args:
        begun: is told when one begins.

    Raises:
        RuntimeError: a process ended without a result.
    """
    if jobs > 1:
        yield from _in_processes(task, list(numbers), jobs, begun)
        return
    for number in numbers:
        begun(number)
        yield number, task(number)


def _in_processes(
    task: Callable[[int], Result], waiting: list[int], jobs: int, begun: Callable[[int], None]
) -> Iterator[tuple[int, Result]]:
    processes = multiprocessing.get_context("fork")  # a task holds what cannot be sent
    threads = max(1, torch.get_num_threads() // jobs)
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    process: BaseProcess
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number = waiting.pop(0)
                begun(number)
                receiving, sending = processes.Pipe(duplex=False)
                process = processes.Process(target=_child, args=(task, number, sending, threads))
                process.start()
                sending.close()
                running[receiving] = number, process
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                number, process = running[connection]
                result = _received(connection)
                del running[connection]
                process.join()
                if isinstance(result, BaseException):
                    raise result
                yield number, result
    finally:
        for _, process in running.values():
            process.terminate()  # asks it to stop, as Ctrl-C asks this one
        for _, process in running.values():
            process.join(ENDING)


def _child(task: Callable[[int], Any], number: int, sending: Connection, threads: int) -> None:
    os.setpgid(0, 0)  # Ctrl-C in a terminal reaches the parent, which asks each child once
    torch.set_num_threads(threads)
    try:
        result = task(number)
    except BaseException as error:
        sending.send(error)
    else:
        sending.send(result)


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        return RuntimeError("a process that audited a model ended without a result")
