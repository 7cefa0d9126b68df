"""What an engine is: it runs one attack on many points, and may spread shards of the points.

Shards always hold the same points, however many workers there are, and random numbers are per point; so
results do not depend on the number of workers. What is random in another way stays in one piece.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from maskaudit import accelerator
from maskaudit.attacks.interface import AttackSpec, Attempt
from maskaudit.errors import MaskauditError
from maskaudit.repairs.specs import PLANNED
from maskaudit.rng import PointRNG
from maskaudit.target import PassLedger, Target
from maskaudit.threat import ThreatModel

#: Points of one shard: few enough to occupy several workers, enough that a pass through the model is not wasted.
SHARD_POINTS = 32
#: Settings of attacks that hold tensors which do not belong to the points one by one.
SHARED_SETTINGS = ("pool", "surrogates", "perturbations")


class EngineError(MaskauditError):
    """A worker was lost; the attack that it ran becomes an error row."""


@dataclass(frozen=True)
class Job:
    """One attack on some points, as `AttackSpec.run` takes it."""

    spec: AttackSpec
    x: Tensor
    y: Tensor
    threat: ThreatModel
    rng: PointRNG
    settings: dict[str, Any]

    def run(self, target: Target) -> Attempt:
        """Run it here: on the target's device from beginning to end, the result where the points came from.

        Nothing in between waits for an accelerator to look at scores; what is wrong with them is said at the end.

        Raises:
            ModelError, AttackUnavailable, …: what the attack raised, or NaN among the scores.
        """
        home, there = self.x.device, target.device
        settings = {name: accelerator.moved(value, there) for name, value in self.settings.items()}
        x, y, rng = self.x.to(there), self.y.to(there), accelerator.moved(self.rng, there)
        with contextlib.ExitStack() as stack:
            for model in (target, *self.settings.get("surrogates", ())):
                stack.enter_context(model.late_checks())
            attempt = self.spec.run(target, x, y, threat=self.threat, rng=rng, **settings)
        return Attempt(attempt.examples.to(home), attempt.first_success.to(home), attempt.queries.to(home))

    def shards(self) -> list[Job]:
        """The same job on `SHARD_POINTS` points at a time, in order."""
        total = len(self.x)
        parts = []
        for start in range(0, total, SHARD_POINTS):
            rows = torch.arange(start, min(start + SHARD_POINTS, total))
            settings = {
                name: value[rows] if name not in SHARED_SETTINGS and _per_point(value, total) else value
                for name, value in self.settings.items()
            }
            parts.append(Job(self.spec, self.x[rows], self.y[rows], self.threat, self.rng.select(rows), settings))
        return parts


@dataclass(frozen=True)
class Done:
    """What a worker brings back for one shard: the attempt, and the passes that it cost."""

    attempt: Attempt
    spent: PassLedger


class Engine(Protocol):
    """Runs jobs."""

    def run(self, job: Job, target: Target) -> Attempt:
        """Run a job against the open target and count the passes in the target's ledger.

        Raises:
            EngineError: when a worker was lost.
            AttackUnavailable, ModelError, …: what the attack raised.
        """
        ...


def divisible(job: Job, target: Target) -> bool:
    """Whether shards give what the whole would: not for models that draw at random, nor for foreign attacks."""
    return (
        not target.random
        and not _looks_at_all(job)
        and job.spec.run.__module__ != "maskaudit.attacks.second_opinion"
        and len(job.x) > 0
    )


def run_counted(job: Job, target: Target) -> Done:
    """Run a job and say what it cost."""
    before = target.ledger.copy()
    attempt = job.run(target)
    return Done(attempt, target.ledger.since(before))


def joined(parts: Sequence[Done], target: Target) -> Attempt:
    """The attempts of all shards in order, their passes counted in the target's ledger."""
    for part in parts:
        target.ledger.forwards += part.spent.forwards
        target.ledger.backwards += part.spent.backwards
    attempts = [part.attempt for part in parts]
    return Attempt(
        torch.cat([attempt.examples for attempt in attempts]),
        torch.cat([attempt.first_success for attempt in attempts]),
        torch.cat([attempt.queries for attempt in attempts]),
    )


def _looks_at_all(job: Job) -> bool:
    """Attacks that trace the model on their first points, and stages that fit a stand-in, once for all points."""
    stage = job.settings.get("stage")
    if stage is None:
        return job.spec.name in PLANNED or job.spec.kind == "repaired"
    return any(repair.remedy == "stand-in" for repair in stage.repairs)


def _per_point(value: Any, total: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == total
