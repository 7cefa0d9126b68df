"""Run one attack inside an audit: bind what it needs, journal what it brings, re-score it and book it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit import foreign
from maskaudit.attacks.interface import AttackSpec, AttackUnavailable, Attempt
from maskaudit.attacks.surrogate import POOL_LIMIT, train_surrogate
from maskaudit.auditing.candidates import Candidates
from maskaudit.auditing.digest import TARGET_SETTINGS, IndescribableError, content_digest
from maskaudit.auditing.engine import EngineError, engine_for
from maskaudit.auditing.engine.interface import Done, Job, OnDone, Result, Task, TaskError, UnfitError, ignore, joined
from maskaudit.auditing.journal import Journal, Kept
from maskaudit.auditing.ledger import ALL_BROKEN, AttackEntry, Ledger
from maskaudit.errors import ModelError, first_line
from maskaudit.loading.blackbox import QueriesSpentError
from maskaudit.rng import PointRNG, stream_seed
from maskaudit.settings import AuditEvent, AuditSettings, Listener
from maskaudit.target import PassLedger, Target
from maskaudit.target.preserve import seed_generators
from maskaudit.target.rescore import PROOF, Score, rescore
from maskaudit.threat import ThreatModel

#: Points of the pool that decision-based search starts from; the surrogate learns from the first of them.
POOL_POINTS = 2000
#: Of a limited number of queries one in so many may go to the pool.
POOL_SHARE = 20


@dataclass(frozen=True)
class Booked:
    """What an attack brought and spent, as booked; `broken` is bool (n,)."""

    broken: Tensor
    queries: int
    forwards: int
    backwards: int
    seconds: float


class Attacker:
    """Attacks on one target, booked in one ledger.

    Args:
        target: the open target; ledger: where outcomes are booked.
        pool: inputs (M, …) for training the surrogate and as starts of decision-based search.
        surrogates: modules for transfer attacks, besides the one trained here.
        journal: keeps finished attacks, if given.

    Attributes:
        afford: called before every attack; raises where the audit may spend no more.
    """

    def __init__(
        self, target: Target, ledger: Ledger, threat: ThreatModel, settings: AuditSettings, *, pool: Tensor,
        surrogates: Sequence[nn.Module], journal: Journal | None, on_event: Listener,
    ) -> None:  # fmt: skip
        self.target, self.ledger, self.threat, self.settings = target, ledger, threat, settings
        self.engine = engine_for(settings)
        self.pool = pool[:POOL_POINTS]
        if settings.queries is not None:
            self.pool = self.pool[: settings.queries // POOL_SHARE]
        self.user_surrogates = surrogates
        self.surrogates: list[Target] = []
        self.journal, self.tell = journal, on_event
        self.candidates = Candidates(ledger)
        self._answers = ""
        self.afford: Callable[[], None] = lambda: None

    def rng(self, stream: str, rows: Tensor) -> PointRNG:
        """Random numbers of a stream for points `rows` of the ledger, tied to their place in the data set."""
        points = torch.tensor([self.ledger.index[row] for row in rows.tolist()], dtype=torch.int64)
        return PointRNG.create(self.settings.seed, stream, points)

    def settle(self, stream: str) -> None:
        """Seed the global generators for what comes next, whatever ran or was restored before it."""
        seed_generators(stream_seed(self.settings.seed, f"{len(self.ledger)} {stream}"))

    def knows(self, answers: Tensor) -> None:
        """Take note of the model's answers (n, K) to new clean points: nothing kept of a model that answers otherwise
        is used again."""
        self._answers = content_digest(self._answers, answers)

    def run(self, spec: AttackSpec, rows: Tensor, settled: Mapping[str, float] | None = None) -> None:
        """Run one attack on points `rows`, re-score what it brings and book it.

        Args:
            settled: settings that this audit adds to those of the spec; the report shows them.
        """
        entry = self.ledger.entry(spec)
        if spec.role == "second_opinion" and entry.attempted.any():
            return
        entry.settings |= settled or {}
        self.say_outcome(spec, rows, [self.carry_out(spec, rows, spec.name, changes=settled)])

    def say_outcome(self, spec: AttackSpec, rows: Tensor, results: Sequence[Booked | str]) -> None:
        """Tell the listener how an attack on points `rows` of the ledger ended, in however many parts it ran."""
        entry = self.ledger.entry(spec)
        refused = next((result for result in results if isinstance(result, str)), None)
        if refused is not None:
            message = refused if entry.status == "error" else f"skipped: {refused}"
        else:
            message = f"broke {int(entry.broken[rows].sum())} of {len(rows)}"
        seconds = sum(result.seconds for result in results if isinstance(result, Booked))
        self.tell(AuditEvent(spec.name, len(rows), True, message, seconds))

    def carry_out(
        self, spec: AttackSpec, rows: Tensor, stream: str, *, settings: Callable[[], dict[str, Any]] | None = None,
        changes: Mapping[str, Any] | None = None, per_point: Mapping[str, Tensor] | None = None,
    ) -> Booked | str:  # fmt: skip
        """Run one attack, or one stage of one, on points `rows` of the ledger; re-score and book what it brings.

        Args:
            stream: names its random numbers and its place in the journal.
            settings: gives the arguments of the attack, and what many points share is learnt here; None: those of the
                spec, with what only a running audit has.
            changes: arguments that differ from these.
            per_point: arguments with one row for each of `rows`.

        Returns:
            What was booked, or the reason why nothing was.
        """
        target, ledger = self.target, self.ledger
        self.afford()
        entry = ledger.entry(spec)
        try:
            self.settle(f"settings of {stream}")
            given = {**(settings() if settings else self._bound(spec)), **(changes or {})}
            self.tell(AuditEvent(stream, len(rows)))
            before = target.ledger.copy()
            attempt, score, seconds = self._attempt(spec, rows, given, dict(per_point or {}), stream)
        except AttackUnavailable as reason:
            self.skip(spec, str(reason))
            return str(reason)
        except UnfitError:
            raise
        except QueriesSpentError:
            entry.status, entry.reason = "error", "the allowed queries were spent during this attack"
            raise
        except ModelError:
            entry.status, entry.reason = "error", "the model failed during this attack"
            raise
        except Exception as error:  # one attack's crash must not lose the others: it becomes a row
            return self._failed(entry, error)
        return self.book(spec, rows, attempt, score, target.ledger.since(before), seconds)

    def book(
        self, spec: AttackSpec, rows: Tensor, attempt: Attempt, score: Score, spent: PassLedger, seconds: float
    ) -> Booked:
        """Book what an attack brought for points `rows` of the ledger, with its fresh score and what both cost."""
        entry, queries = self.ledger.entry(spec), int(attempt.queries.sum())
        if not entry.lost:
            entry.status, entry.reason = "ran", _without_gradient(spec, self.target)
        self.ledger.record(spec, rows, attempt.examples, score.broken, attempt.first_success, score.won)
        entry.queries += queries
        entry.forwards += spent.forwards
        entry.backwards += spent.backwards
        entry.seconds += seconds
        if spec.role != "sanity":
            self.candidates.keep(self.target, rows, attempt.examples, score)
        return Booked(score.broken, queries, spent.forwards, spent.backwards, seconds)

    def _failed(self, entry: AttackEntry, error: Exception) -> str:
        """Book what went wrong; work that workers lost stays an error, whatever else the attack does."""
        name = error.name if isinstance(error, TaskError) else type(error).__name__
        reason = f"{name}: {first_line(error)}"
        entry.lost |= isinstance(error, EngineError)
        if entry.lost or not entry.attempted.any():
            entry.status, entry.reason = "error", reason
        return "error: " + reason

    def skip(self, spec: AttackSpec, reason: str = ALL_BROKEN) -> None:
        """Book that an attack had nothing to do, unless it had in an earlier look."""
        entry = self.ledger.entry(spec)
        if not (entry.attempted.any() or entry.lost):
            entry.status, entry.reason = "skipped", reason

    def _attempt(
        self, spec: AttackSpec, rows: Tensor, settings: dict[str, Any], per_point: dict[str, Tensor], stream: str
    ) -> tuple[Attempt, Score, float]:
        """What the attack brings, its fresh score, and the seconds of both."""
        target, x, y = self.target, self.ledger.x[rows], self.ledger.y[rows]
        threat = self.threat.unbounded(x) if spec.role == "sanity" else self.threat
        job = Job(spec, x, y, threat, self.rng(stream, rows), settings, per_point)
        shards = {f"{stream} {number}": shard for number, shard in enumerate(job.shards(target.device))}
        with foreign.breaking_off_at_once():  # nothing is booked before it is finished
            done, taken = self.do(shards)
        started, attempt = time.perf_counter(), joined([part.result for part in done])
        self.settle(f"score of {stream}")
        score = rescore(
            target.raw, attempt.examples, x, y, threat=threat, random=target.random,
            reject_class=target.reject_class, proof=PROOF,
        )  # fmt: skip
        return attempt, score, taken + time.perf_counter() - started

    def do(
        self, named: Mapping[str, Task[Result]], on_done: OnDone[Result] = ignore
    ) -> tuple[list[Done[Result]], float]:
        """Tasks by the names that the journal knows them by: what is kept there is restored, the rest is done.

        Returns:
            What they brought in order, and the seconds that it took, those before an interruption included.

        Raises:
            As `Engine.run`.
        """
        tasks = list(named.values())
        keys = [f"{len(self.ledger)}-{name}" for name in named]
        contents = [self._content(task) if self.journal else "" for task in tasks]
        found = {n: done for n, task in enumerate(tasks) if (done := self._restored(keys[n], contents[n], task))}
        left = [number for number in range(len(tasks)) if number not in found]

        def keep(position: int, done: Done[Result]) -> None:
            number = left[position]
            if self.journal and contents[number]:
                tensors, plain = tasks[number].packed(done.result)
                self.journal.write(keys[number], contents[number], Kept(tensors, done.spent, done.seconds, plain))
            on_done(number, done)

        for number, done in found.items():
            on_done(number, done)
        restored, started = list(found.values()), time.perf_counter()
        found |= zip(left, self.engine.run([tasks[number] for number in left], self.target, keep), strict=True)
        seconds = time.perf_counter() - started + sum(done.seconds for done in restored)
        for done in restored:
            self.target.ledger.add(done.spent)
        return [found[number] for number in range(len(tasks))], seconds

    def _restored(self, key: str, content: str, task: Task[Result]) -> Done[Result] | None:
        kept = self.journal.read(key, content) if self.journal and content else None
        if kept is None:
            return None
        try:
            return Done(task.unpacked(kept.tensors, kept.plain), kept.spent, kept.seconds)
        except (LookupError, TypeError, ValueError):  # damaged: it is done again
            return None

    def _content(self, task: object) -> str:
        """A digest of a task and of its model; "" where it cannot be determined, and nothing is kept."""
        try:
            return content_digest(self._answers, {n: getattr(self.target, n) for n in TARGET_SETTINGS}, task)
        except IndescribableError:
            return ""

    def _bound(self, spec: AttackSpec) -> dict[str, Any]:
        """The attack's settings with what only a running audit has."""
        given: dict[str, Any] = {}
        if "surrogates" in spec.shared:
            self._prepare_surrogates()
            given["surrogates"] = self.surrogates
        if "pool" in spec.shared:
            given["pool"] = self.pool
        return {**spec.settings, **given}

    def _prepare_surrogates(self) -> None:
        if self.surrogates:
            return
        pool = self.pool[:POOL_LIMIT].to(self.settings.device)
        self.tell(AuditEvent("surrogate", len(pool)))
        started = time.perf_counter()
        trained = train_surrogate(
            self.target, pool, threat=self.threat, seed=self.settings.seed,
            num_classes=self.target.raw(pool[:1]).shape[1],
            rounds=self.settings.effort.surrogate_rounds,
        )  # fmt: skip
        for module in (trained, *self.user_surrogates):
            module.to(self.settings.device).eval()
            size, device = self.target.batch_size, self.settings.device
            self.surrogates.append(Target(module, bounds=self.threat.bounds, batch_size=size, device=device))
        outcome = f"learnt from {len(pool)} points"
        self.tell(AuditEvent("surrogate", len(pool), True, outcome, time.perf_counter() - started))


def _without_gradient(spec: AttackSpec, target: Target) -> str:
    """Why a white-box attack had none to follow; "" where it had."""
    if not target.gradient_failure or spec.role not in ("reference", "strong"):
        return ""
    return f"Where the model's gradient fails it counts as zero. {target.gradient_failure}"
