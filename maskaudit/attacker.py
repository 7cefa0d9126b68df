"""Run one attack inside an audit: bind what it needs, journal what it brings, re-score it and book it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit import foreign
from maskaudit.attacks.interface import AttackSpec, AttackUnavailable, Attempt
from maskaudit.attacks.surrogate import POOL_LIMIT, train_surrogate
from maskaudit.engine import engine_for
from maskaudit.engine.interface import Job
from maskaudit.errors import ModelError
from maskaudit.journal import Journal
from maskaudit.ledger import Ledger
from maskaudit.rescore import AUDIT_QUORUM, Score, rescore
from maskaudit.rng import PointRNG
from maskaudit.settings import AuditEvent, AuditSettings, Listener
from maskaudit.target import Target
from maskaudit.threat import ThreatModel

#: Points of the pool that decision-based search starts from; the surrogate learns from the first of them.
POOL_POINTS = 2000


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
    """

    def __init__(
        self,
        target: Target,
        ledger: Ledger,
        threat: ThreatModel,
        settings: AuditSettings,
        *,
        pool: Tensor,
        surrogates: Sequence[nn.Module],
        journal: Journal | None,
        on_event: Listener,
    ) -> None:
        self.target, self.ledger, self.threat, self.settings = target, ledger, threat, settings
        self.engine = engine_for(settings)
        self.pool = pool[:POOL_POINTS]
        self.user_surrogates = surrogates
        self.surrogates: list[Target] = []
        self.journal, self.tell = journal, on_event
        self._candidates: dict[int, tuple[float, Tensor]] = {}

    def rng(self, stream: str, rows: Tensor) -> PointRNG:
        """Random numbers of a stream for points `rows` of the ledger, tied to their place in the data set."""
        points = torch.tensor([self.ledger.index[row] for row in rows.tolist()], dtype=torch.int64)
        return PointRNG.create(self.settings.seed, stream, points)

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
            said = refused if entry.status == "error" else f"skipped: {refused}"
        else:
            said = f"broke {int(entry.broken[rows].sum())} of {len(rows)}"
        seconds = sum(result.seconds for result in results if isinstance(result, Booked))
        self.tell(AuditEvent(spec.name, len(rows), True, said, seconds))

    def carry_out(
        self,
        spec: AttackSpec,
        rows: Tensor,
        stream: str,
        *,
        settings: Mapping[str, Any] | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Booked | str:
        """Run one attack, or one stage of one, on points `rows` of the ledger; re-score and book what it brings.

        Args:
            stream: names its random numbers and its place in the journal.
            settings: arguments of the attack; None: those of the spec, with what only a running audit has.
            changes: arguments that differ from these.

        Returns:
            What was booked, or the reason why nothing was.
        """
        target, ledger = self.target, self.ledger
        entry = ledger.entry(spec)
        try:
            settings = {**(self._bound(spec) if settings is None else settings), **(changes or {})}
            self.tell(AuditEvent(stream, len(rows)))
            started, before = time.perf_counter(), target.ledger.copy()
            attempt, score = self._attempt(spec, rows, settings, stream)
        except AttackUnavailable as reason:
            self.skip(spec, str(reason))
            return str(reason)
        except ModelError:
            entry.status, entry.reason = "error", "the model failed during this attack"
            raise
        except Exception as error:  # one attack's crash must not lose the others: it becomes a row
            reason_given = f"{type(error).__name__}: {error}".splitlines()[0]
            if not entry.attempted.any():
                entry.status, entry.reason = "error", reason_given
            return "error: " + reason_given
        entry.status, entry.reason = "ran", ""
        ledger.record(spec, rows, attempt.examples, score.broken, attempt.first_success)
        spent = target.ledger.since(before)
        queries, seconds = int(attempt.queries.sum()), time.perf_counter() - started
        entry.queries += queries
        entry.forwards += spent.forwards
        entry.backwards += spent.backwards
        entry.seconds += seconds
        if spec.kind != "sanity":
            self._keep(rows, attempt.examples, score)
        return Booked(score.broken, queries, spent.forwards, spent.backwards, seconds)

    def candidates(self, rows: Tensor) -> Tensor:
        """The example with the largest margin that any attack found for each of `rows`; the clean point if none did."""
        return torch.stack(
            [self._candidates[r][1] if r in self._candidates else self.ledger.x[r] for r in rows.tolist()]
        )

    def nearest(self, rows: Tensor, share: float, least: int) -> Tensor:
        """Those of `rows` whose candidates have the largest margins: a share of them, at `least` so many."""
        margins = torch.tensor([self._candidates[r][0] if r in self._candidates else -math.inf for r in rows.tolist()])
        most = max(least, math.ceil(share * len(rows)))
        return rows[margins.argsort(descending=True, stable=True)[:most].sort().values]

    def _keep(self, rows: Tensor, examples: Tensor, score: Score) -> None:
        """Keep the best candidates for points that nothing has broken."""
        useful = (score.admissible & ~self.ledger.best_known()[rows]).nonzero().squeeze(1)
        rows, examples = rows[useful], examples[useful]
        if not len(rows):
            return
        margins = self.target.margin(self.target.scores(examples), self.ledger.y[rows]).tolist()
        for row, margin, example in zip(rows.tolist(), margins, examples, strict=True):
            held = self._candidates.get(row)
            if held is None or margin > held[0]:
                self._candidates[row] = (margin, example.clone())

    def skip(self, spec: AttackSpec, reason: str) -> None:
        """Book that an attack had nothing to do, unless it had in an earlier look."""
        entry = self.ledger.entry(spec)
        if not entry.attempted.any():
            entry.status, entry.reason = "skipped", reason

    def _attempt(self, spec: AttackSpec, rows: Tensor, settings: dict[str, Any], stream: str) -> tuple[Attempt, Score]:
        """What the attack brings (from the journal if it is there), and its fresh score."""
        target, x, y = self.target, self.ledger.x[rows], self.ledger.y[rows]
        threat = self._unbounded(x) if spec.kind == "sanity" else self.threat
        key = f"{len(self.ledger)}-{stream}"
        attempt = self.journal.read(key, rows) if self.journal else None
        if attempt is None:
            with foreign.breaking_off_at_once():  # nothing is booked before it is finished
                attempt = self.engine.run(Job(spec, x, y, threat, self.rng(stream, rows), settings), target)
            if self.journal:
                self.journal.write(key, rows, attempt)
        score = rescore(
            target.raw, attempt.examples, x, y, threat=threat, random=target.random,
            reject_class=target.reject_class, quorum=AUDIT_QUORUM,
        )  # fmt: skip
        return attempt, score

    def _unbounded(self, x: Tensor) -> ThreatModel:
        """A ball that holds the whole box."""
        width = self.threat.bounds[1] - self.threat.bounds[0]
        return self.threat.with_eps(width if self.threat.norm == "Linf" else width * x[0].numel() ** 0.5)

    def _bound(self, spec: AttackSpec) -> dict[str, Any]:
        """The attack's settings with what only a running audit has."""
        if spec.kind == "transfer":
            self._prepare_surrogates()
            return {**spec.settings, "surrogates": self.surrogates}
        if spec.kind == "decision":
            return {**spec.settings, "pool": self.pool}
        return spec.settings

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
            self.surrogates.append(
                Target(
                    module,
                    bounds=self.threat.bounds,
                    batch_size=self.target.batch_size,
                    device=self.settings.device,
                )
            )
        outcome = f"learnt from {len(pool)} points"
        self.tell(AuditEvent("surrogate", len(pool), True, outcome, time.perf_counter() - started))
