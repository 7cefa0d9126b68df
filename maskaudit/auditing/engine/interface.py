"""What an engine is: it runs tasks, each a pure function of its own content and of the open target.

An attack becomes one `Job`, a job becomes shards by the rows of its points, and shards and probes are the tasks.
Three rules make every figure the same for any number of workers, in this process, and after any number of kills:

* Shards hold the same points wherever they run: their number depends on the inputs alone (`shard_points`), since a
  model's answers may differ in the last bit with the batch that a point travels in.
* A task starts with global random generators that it seeds itself, and its own numbers are per point (`PointRNG`).
* A task says what it spent. Of several that were given together, either all are counted in the target's ledger, or
  none, where one of them failed.

A task is plain data that can be pickled, as long as the attack's function and settings can. What an engine must
provide is `Engine.run`: results in the order of the tasks, the failure of the earliest task if any fails, and every
task done exactly once, whatever becomes of the workers. `Done` is what travels back.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from maskaudit.attacks.interface import AttackSpec, AttackUnavailable, Attempt
from maskaudit.errors import MaskauditError, ModelError, UsageError
from maskaudit.loading.blackbox import QueriesSpentError
from maskaudit.rng import PointRNG, stream_seed
from maskaudit.target import PassLedger, Target, accelerator
from maskaudit.target.preserve import seed_generators
from maskaudit.threat import ThreatModel

#: Points of one shard: at least, so that a pass is not wasted on large inputs; at most, so that workers get something.
LEAST_SHARD, MOST_SHARD = 32, 128
#: Numbers that the points of a shard hold together, between these limits: passes of small inputs cost little more for
#: many than for few (64 numbers per point: Square takes 1.5 times as long on 96 points at a time as on 192, on 32
#: three times).
SHARD_ELEMENTS = 2**16

Result = TypeVar("Result")


class EngineError(MaskauditError):
    """Workers were lost again and again; the attack that they ran becomes an error row, and the verdict mentions it."""


class UnfitError(UsageError):
    """This audit cannot run on this engine at all: its model cannot be sent, or machines differ."""


class TaskError(MaskauditError):
    """What a task raised elsewhere, if it is no error that the audit knows: the name of its type, and its message."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Task(Protocol[Result]):
    """Something to do against the open target: plain data, and all that the result depends on besides the target."""

    def run(self, target: Target) -> Result:
        """Do it; the result is the same wherever and whenever this is called."""
        ...

    def packed(self, result: Result) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A result as tensors and JSON types, for the journal."""
        ...

    def unpacked(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Result:
        """The result again.

        Raises:
            LookupError, TypeError, ValueError: when this is no result of this task.
        """
        ...


@dataclass(frozen=True)
class Done(Generic[Result]):
    """What one task brought, and the passes and seconds that it cost."""

    result: Result
    spent: PassLedger
    seconds: float = 0.0


def ignore(_number: int, _done: Done[Any]) -> None:
    """For callers that need no report of single tasks."""


OnDone = Callable[[int, Done[Result]], None]


class Engine(Protocol):
    """What runs tasks: in this process, in several, or on a cluster."""

    def run(
        self, tasks: Sequence[Task[Result]], target: Target, on_done: OnDone[Result] = ignore
    ) -> list[Done[Result]]:
        """Run all tasks against the open target, results in their order; the passes are counted in its ledger.

        Args:
            on_done: called with the number of a task and what it brought as soon as it is done, in whatever order.

        Raises:
            EngineError: when workers were lost again and again.
            UnfitError: when this engine cannot run this audit.
            AttackUnavailable, ModelError, …: what the earliest task that failed raised, or a `TaskError` in place
                for it; no pass is counted then.
        """
        ...

    def close(self) -> None:
        """Give up what the engine holds; it runs nothing any more."""
        ...


@dataclass(frozen=True)
class Job:
    """One attack on some points, as `AttackSpec.run` takes it.

    Attributes:
        x, y: points (N, …) and labels (N,).
        settings: arguments that all points share.
        per_point: arguments with one row per point (N, …); they are cut with the points.
    """

    spec: AttackSpec
    x: Tensor
    y: Tensor
    threat: ThreatModel
    rng: PointRNG
    settings: dict[str, Any]
    per_point: dict[str, Tensor] = field(default_factory=dict)

    def run(self, target: Target) -> Attempt:
        """Run it here: on the target's device from beginning to end, the result where the points came from.

        Nothing in between waits for an accelerator to look at scores; what is wrong with them is reported at the end.

        Raises:
            ModelError, AttackUnavailable, …: what the attack raised, or NaN among the scores.
        """
        home, there = self.x.device, target.device
        given = {**self.settings, **self.per_point}
        settings = {name: accelerator.moved(value, there) for name, value in given.items()}
        x, y, rng = self.x.to(there), self.y.to(there), accelerator.moved(self.rng, there)
        seed_generators(stream_seed(self.rng.key, f"from point {self.rng.points[:1].tolist()}"))
        with contextlib.ExitStack() as stack:
            stack.enter_context(target.snapping())
            for model in (target, *self.settings.get("surrogates", ())):
                stack.enter_context(model.late_checks())
            attempt = self.spec.run(target, x, y, threat=self.threat, rng=rng, **settings)
        examples = self.threat.settle(attempt.examples, x)
        return Attempt(examples.to(home), attempt.first_success.to(home), attempt.queries.to(home))

    def packed(self, result: Attempt) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `Task.packed`."""
        return dict(vars(result)), {}

    def unpacked(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Attempt:
        """As `Task.unpacked`."""
        attempt = Attempt(tensors["examples"], tensors["first_success"], tensors["queries"])
        counts = (attempt.first_success, attempt.queries)
        fits = attempt.examples.shape == self.x.shape and attempt.examples.dtype == self.x.dtype
        if not fits or any(count.shape != self.y.shape or count.dtype != torch.int64 for count in counts):
            raise ValueError("The attempt was made on other points.")
        return attempt

    def shards(self, device: torch.device) -> list[Job]:
        """The same job on some of its points at a time, in order; whole on an accelerator, which no worker shares."""
        total = len(self.x)
        if self.spec.whole or not total or not accelerator.asking_is_free(device):
            return [self]
        count = math.ceil(total / shard_points(self.x))
        return [self._part(rows) for rows in torch.arange(total).tensor_split(count)]

    def _part(self, rows: Tensor) -> Job:
        per_point = {name: value[rows] for name, value in self.per_point.items()}
        rng = self.rng.select(rows)
        return Job(self.spec, self.x[rows], self.y[rows], self.threat, rng, self.settings, per_point)


def shard_points(x: Tensor) -> int:
    """Most points of one shard, by the size of the inputs (N, …) alone."""
    return min(MOST_SHARD, max(LEAST_SHARD, SHARD_ELEMENTS // max(1, x[0].numel())))


def run_counted(task: Task[Result], target: Target) -> Done[Result]:
    """Run a task and say what it cost."""
    before, started = target.ledger.copy(), time.perf_counter()
    result = task.run(target)
    return Done(result, target.ledger.since(before), time.perf_counter() - started)


def failure(name: str, message: str) -> Exception:
    """The exception of a type's name and a message that a task raised elsewhere."""
    known: dict[str, type[Exception]] = {
        kind.__name__: kind for kind in (ModelError, AttackUnavailable, QueriesSpentError)
    }
    return known[name](message) if name in known else TaskError(name, message)


def joined(attempts: Sequence[Attempt]) -> Attempt:
    """The attempts of all shards in order, as one."""
    parts = zip(*((one.examples, one.first_success, one.queries) for one in attempts), strict=True)
    return Attempt(*map(torch.cat, parts))
