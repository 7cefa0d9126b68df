"""A Ray cluster: tasks become remote ones. The package ray is optional, and must be there on every node."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Sequence
from typing import Any

import torch

from maskaudit.auditing.engine.interface import (
    Done,
    EngineError,
    OnDone,
    Result,
    Task,
    failure,
    ignore,
    run_counted,
    run_here,
)
from maskaudit.errors import UsageError, describe_error, message
from maskaudit.target import Target


class Ray:
    """Runs tasks on a cluster.

    The model travels to the nodes by pickling, so its code must be importable there. Nodes compute on their CPU.

    Args:
        address: of the cluster, such as `auto` or `ray://head:10001`.

    Raises:
        UsageError: without the package, or when the cluster cannot be reached.
    """

    def __init__(self, address: str) -> None:
        try:
            self.ray: Any = importlib.import_module("ray")
        except Exception as error:  # missing, or built for another Python
            raise UsageError(
                f"--ray needs the package ray, which cannot be imported ({describe_error(error)}); "
                "install it with: pip install 'maskaudit[ray]'"
            ) from error
        try:
            self.ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        except Exception as error:  # wrong addresses, versions and networks each fail in their own way
            raise UsageError(f"No Ray cluster answers at {address!r} ({describe_error(error)}).") from error
        self._task = self.ray.remote(_task)

    def run(
        self, tasks: Sequence[Task[Result]], target: Target, on_done: OnDone[Result] = ignore
    ) -> list[Done[Result]]:
        """As `Engine.run`."""
        try:
            held = self.ray.put(_portable(target))
            try:
                pending = [self._task.remote(held, task) for task in tasks]
            except (TypeError, AttributeError, pickle.PicklingError):  # settings that live in this process only
                return run_here(tasks, target, on_done)
            answers = self.ray.get(pending)
        except Exception as error:  # a lost node, a model that cannot be pickled, …
            raise EngineError(f"the Ray cluster did not finish the work: {describe_error(error)}") from error
        for kind, content in answers:
            if kind != "done":
                raise failure(kind, content)
        done = [content for _, content in answers]
        for number, part in enumerate(done):
            on_done(number, part)
            target.ledger.add(part.spent)
        return done


def _portable(target: Target) -> tuple[Any, dict[str, Any]]:
    """The model, and what a target is made of."""
    names = ("bounds", "mean", "std", "outputs", "draws", "reject_class", "batch_size", "seed")
    return target.model, {name: getattr(target, name) for name in names}


def _task(held: tuple[Any, dict[str, Any]], task: Task[Any]) -> tuple[str, Any]:
    """One task on a node: what it brought, or the name and message of what went wrong."""
    torch.set_num_threads(1)
    model, settings = held
    try:
        with Target(model, **settings) as target:
            return "done", run_counted(task, target)
    except Exception as error:  # judged where the audit runs
        return type(error).__name__, message(error)
