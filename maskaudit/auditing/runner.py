"""The order of work of one audit: draw points, probe, attack, judge, and go on until the verdict is decided.

The runner knows nothing of terminals or files: it reports progress to a listener,
keeps finished attacks in a journal if it is given one, and returns an `Audit`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskaudit import foreign
from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.registry import UNBOUNDED
from maskaudit.attacks.second_opinion import external_attack
from maskaudit.auditing.adaptive import AdaptiveAttack, planned
from maskaudit.auditing.attacker import Attacker
from maskaudit.auditing.catalogue import catalogue, check_names
from maskaudit.auditing.challenge import Challenge
from maskaudit.auditing.document import build_report
from maskaudit.auditing.engine.interface import Done, EngineError
from maskaudit.auditing.evidence import pack_evidence
from maskaudit.auditing.figures import eps_curve, gradient_flow, strips, surface
from maskaudit.auditing.inspection import inspection
from maskaudit.auditing.journal import Journal
from maskaudit.auditing.ledger import Ledger
from maskaudit.auditing.near_misses import attack_near_misses
from maskaudit.auditing.planted import solve_planted
from maskaudit.data import Dataset
from maskaudit.errors import MaskauditError, ModelError
from maskaudit.loading.interface import LoadedModel
from maskaudit.probes.interface import AttackOutcome, ProbeContext
from maskaudit.probes.run import ProbeTask, run_probe
from maskaudit.repairs.attack import per_coordinate
from maskaudit.repairs.blame import traced
from maskaudit.repairs.specs import PLANNED
from maskaudit.repairs.stages import StandIns
from maskaudit.results import EVIDENCE_FILE, AuditReport, Partial, ProbeResult
from maskaudit.settings import AuditEvent, AuditSettings, Listener, ignore_events
from maskaudit.target import Target, usual_batch
from maskaudit.target.recognise import recognise
from maskaudit.target.rescore import clean_correct
from maskaudit.threat import ThreatModel
from maskaudit.trace.records import Trace
from maskaudit.verdict.limits import MIN_KNOWN, SCREEN
from maskaudit.verdict.mechanisms import located
from maskaudit.verdict.power import NOT_CHECKED, Power, check_power
from maskaudit.verdict.rules import Judgement, Observations, error_level, fired_indicators, judge

#: Parameters of a model and numbers of an input (3 × 64 × 64) up to which passes use one thread.
SMALL_MODEL, SMALL_INPUT = 2_000_000, 12_288


@dataclass(frozen=True)
class Audit:
    """A finished audit, or what one that broke off had found.

    Attributes:
        report: the document.
        evidence: bytes of the evidence file that belongs to it.
        failure: the error of the audited model that ended it early, if any.
        interrupted: the request to stop that ended it early, if any.
    """

    report: AuditReport
    evidence: bytes
    failure: ModelError | None = None
    interrupted: foreign.Interrupted | None = None


#: Takes a report of what was found so far, marked as partial.
Keeper = Callable[[AuditReport], None]

#: Share of the time that reports of what was found so far may take.
KEEPING = 0.03
#: What such a report says, unless whoever kept it knows more.
UNFINISHED = "It was broken off."


def run_audit(
    loaded: LoadedModel,
    data: Dataset,
    threat: ThreatModel,
    settings: AuditSettings,
    *,
    pool: Tensor | None = None,
    surrogates: Sequence[nn.Module] = (),
    journal: Journal | None = None,
    on_event: Listener = ignore_events,
    keep: Keeper | None = None,
) -> Audit:
    """Audit a model on a data set under a threat model.

    Args:
        pool: further inputs (M, …) of the same kind, for training the surrogate and as starts of
            decision-based search; the drawn points where there are none.
        surrogates: modules for transfer attacks, besides the one trained here.
        journal: keeps finished attacks, so that an interrupted audit can resume.
        keep: is given a partial report now and then, for the case that this process is ended. Whoever gives it
            also takes the partial result of an interrupted audit; for others the interruption goes on.

    Raises:
        InputError, UsageError: when the data or settings do not fit the model.
        ModelError: when the model fails before anything was measured.
    """
    batch_size = settings.batch_size or usual_batch(data.point_shape)
    settings = dataclasses.replace(settings, batch_size=batch_size)
    target = Target(
        loaded.module, bounds=threat.bounds, mean=settings.mean, std=settings.std, batch_size=batch_size,
        reject_class=settings.reject_class, device=settings.device, seed=settings.seed,
    )  # fmt: skip
    with target, _few_threads(loaded, data, settings):
        return _Run(target, loaded, data, threat, settings, pool, surrogates, journal, on_event, keep).finish()


@contextlib.contextmanager
def _few_threads(loaded: LoadedModel, data: Dataset, settings: AuditSettings) -> Iterator[None]:
    """One thread, as in every worker, where models and inputs are small or workers share the work anyway.

    With more threads sums are taken in another order, and results differ in the last bits. Passes of small models gain
    little from them; large ones keep what torch was given.
    """
    threads = torch.get_num_threads()
    small = loaded.parameters <= SMALL_MODEL and math.prod(data.point_shape) <= SMALL_INPUT
    if small or settings.workers is not None or settings.ray:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Run:
    """State of one audit."""

    def __init__(
        self,
        target: Target,
        loaded: LoadedModel,
        data: Dataset,
        threat: ThreatModel,
        settings: AuditSettings,
        pool: Tensor | None,
        surrogates: Sequence[nn.Module],
        journal: Journal | None,
        on_event: Listener,
        keep: Keeper | None,
    ) -> None:
        self.target, self.loaded, self.data, self.threat, self.settings = target, loaded, data, threat, settings
        self.on_event, self.keep, self.keep_after = on_event, keep, 0.0
        self.looks = settings.looks(len(data))
        self.ledger = Ledger()
        self.attacker = Attacker(
            target, self.ledger, threat, settings,
            pool=data.x if pool is None else pool, surrogates=surrogates, journal=journal, on_event=self.tell,
        )  # fmt: skip
        self.challenge = Challenge(self.attacker, self._suspected, error_level(len(self.looks)))
        self.judgement: Judgement | None = None
        self.started = time.perf_counter()
        self.static_probes: list[ProbeResult] = []
        self.attack_probes: list[ProbeResult] = []
        self.power = NOT_CHECKED
        self.catalogue = catalogue(settings.effort, threat.norm)
        self.notes: list[str] = [*loaded.notes, *data.notes, *self.catalogue.notes]
        self.specs = self._specs()
        self._own = {UNBOUNDED.name, *(spec.name for spec in self.catalogue.attacks)} - self.catalogue.foreign
        self.trace: dict[str, Any] = {}
        self.adaptive: AdaptiveAttack | None = None
        self.figures: dict[str, Any] = {}

    def finish(self) -> Audit:
        failure: ModelError | None = None
        interrupted: foreign.Interrupted | None = None
        try:
            with foreign.breaking_off_between_calls():
                self._work()
        except ModelError as error:
            failure = error
        except foreign.Interrupted as request:
            interrupted = request
        ended = failure or interrupted
        if ended is not None and (not len(self.ledger) or (interrupted is not None and self.keep is None)):
            raise ended
        report = self._report("" if ended is None else str(ended))
        document = report.to_dict()
        scoring = {
            "sha256": self.loaded.sha256, "threat": document["threat"], "mean": self.settings.mean,
            "std": self.settings.std, "outputs": self.target.outputs, "reject_class": self.target.reject_class,
            "random": self.target.random, "seed": self.settings.seed, "device": self.settings.device,
        }  # fmt: skip
        evidence = pack_evidence(self.ledger, document, scoring)
        return Audit(report.with_evidence(EVIDENCE_FILE, evidence), evidence, failure, interrupted)

    def _work(self) -> None:
        """Look, judge and look again until the verdict is decided."""
        self.notes += recognise(self.target, self.data, self.settings)
        for points in self.looks:
            self.judgement = None
            self._look(points)
            self.judgement = self._judge()
            if self.judgement.needs == "nothing":
                break
        self._draw_figures()

    def tell(self, event: AuditEvent) -> None:
        """Pass on an event; at the end of a step keep what was found so far, where that costs little."""
        self.on_event(event)
        started = time.perf_counter()
        if event.finished and self.keep is not None and len(self.ledger) and started >= self.keep_after:
            self.keep(self._report(UNFINISHED))
            ended = time.perf_counter()
            self.keep_after = ended + (ended - started) / KEEPING

    def _report(self, reason: str) -> AuditReport:
        """The report of what was found so far; with the reason why there is no more, if that is not all.

        Nothing asks the model any more here.
        """
        judgement = self.judgement or judge(dataclasses.replace(self._observations(reason), power=self.power))
        return build_report(
            loaded=self.loaded, data=self.data, threat=self.threat, settings=self.settings, target=self.target,
            ledger=self.ledger, judgement=judgement, power=self.power, probes=self._probes(), looks=self.looks,
            figures=self.figures, notes=tuple(self.notes), trace=self.trace,
            plan=self.adaptive.to_dict() if self.adaptive else {}, seconds=time.perf_counter() - self.started,
            partial=Partial(reason) if reason else None,
        )  # fmt: skip

    # --- one look ---------------------------------------------------------------------------------

    def _look(self, points: int) -> None:
        """Bring the number of drawn points up to `points` and run everything on the new ones."""
        before = len(self.ledger)
        index, x, y = self.data.sample(points, self.settings.seed)
        index, x, y = index[before:], x[before:], y[before:]
        target = self.target
        self.attacker.settle("clean accuracy")
        correct = clean_correct(target.raw, x, y, random=target.random, reject_class=target.reject_class)
        answers = target.raw(x)
        self.attacker.knows(answers)
        self.ledger.add_points(index, x, y, correct, answers.argmax(dim=1))
        rows = before + correct.nonzero().squeeze(1)
        first = [p for p in self.catalogue.probes if self._wanted(p.rule) and "attacks" not in p.needs]
        probes = 0 if self.static_probes else len(first)
        self.tell(AuditEvent("audit", len(x), total=probes + len(self.specs) + 1))
        self.tell(AuditEvent("clean accuracy", len(x), True, f"{int(correct.sum())} of {len(x)} correct"))
        if not len(rows):
            return
        if not self.static_probes:
            self._run_static_probes(rows)
            self._plan(self._trace(rows), rows)
        first_round = [spec for spec in self.specs if not spec.near_miss]
        own = [spec for spec in first_round if spec.role in ("reference", "strong") and spec.name not in PLANNED]
        challengers = [spec for spec in first_round if spec.role == "challenger"]
        self._run_on_due(UNBOUNDED, rows)
        self._run_attack_probes()  # what they say decides how thoroughly the others search
        for spec in own:
            self._run_on_due(spec, rows)
        self.challenge.learn(challengers, rows)
        planned_yet = False
        for spec in first_round:
            if spec.name in PLANNED:
                if self.adaptive is not None and not planned_yet:
                    planned_yet = True
                    self.adaptive.run(rows)
            elif spec in challengers:
                self.challenge.run(spec, rows)
            elif spec not in own:
                self._run_on_due(spec, rows)
        attack_near_misses(self.attacker, [spec for spec in self.specs if spec.near_miss], rows)
        self._run_attack_probes()

    def _run_on_due(self, spec: AttackSpec, rows: Tensor) -> None:
        """Run an attack on what is its business among the points of this look; second opinions get a sample."""
        due = rows
        if spec.role == "second_opinion":
            due = rows[~self.ledger.best_known()[rows]][: self.settings.effort.second_opinion]
            if not len(due):
                self.attacker.skip(spec, "no point was left standing")
        elif spec.second_chance:
            due = rows[(self.ledger.strong() & ~self.ledger.cross_entropy())[rows]]
        if len(due):
            spares = not (self.target.random or self._suspected())
            self.attacker.run(spec, due, spec.sparing if spares else {})

    def _suspected(self) -> bool:
        """Whether a probe of the screen fired or the trace located a fault."""
        return bool(self.trace.get("culprits") or fired_indicators((*self.static_probes, *self.attack_probes)))

    # --- probes, power, verdict -------------------------------------------------------------------

    def _run_static_probes(self, rows: Tensor) -> None:
        chosen = rows[: self.settings.effort.probe_points]
        x, y, rng = self.ledger.x[chosen], self.ledger.y[chosen], self.attacker.rng("probes", chosen)
        wanted = [p for p in self.catalogue.probes if self._wanted(p.rule) and "attacks" not in p.needs]
        tasks = {f"probe {probe.rule}": ProbeTask(probe, x, y, self.threat, rng) for probe in wanted}

        def tell(_number: int, done: Done[ProbeResult]) -> None:
            result = done.result
            self.tell(AuditEvent(result.rule, len(chosen), True, _probe_outcome(result), result.seconds))

        self.tell(AuditEvent("probes", len(chosen)))
        try:
            self.static_probes = [done.result for done in self.attacker.do(tasks, tell)[0]]
        except EngineError:  # one of them ends its worker: the others are not to blame
            self.static_probes = [self._by_itself(name, task) for name, task in tasks.items()]

    def _by_itself(self, name: str, task: ProbeTask) -> ProbeResult:
        try:
            return self.attacker.do({name: task})[0][0].result
        except EngineError as error:
            return task.lost(str(error))

    def _plan(self, trace: Trace | None, rows: Tensor) -> None:
        """Settle the adaptive attack for this and all later looks."""
        settings = self.settings
        self.attacker.settle("plan")
        stand_ins = StandIns(self.target, self.ledger.x[rows], threat=self.threat, seed=settings.seed)
        plan = planned(trace, self.static_probes, settings, self.target, stand_ins)
        specs = [spec for spec in self.specs if spec.name in PLANNED]
        self.adaptive = AdaptiveAttack(self.attacker, plan, specs, stand_ins)

    def _trace(self, rows: Tensor) -> Trace | None:
        """Look inside the model; where that fails, the reason is noted and the audit goes on without."""
        self.tell(AuditEvent("trace", len(rows)))
        started = time.perf_counter()
        x, y = self.ledger.x[rows], self.ledger.y[rows]
        trace: Trace | None = None
        self.attacker.settle("trace")
        try:
            trace = traced(self.target, x, y, eps=per_coordinate(self.threat, x))
            self.trace = inspection(trace)
        except Exception as error:  # foreign code under observation: anything may come up
            self.notes.append(f"The model could not be traced: {type(error).__name__}: {error}".splitlines()[0])
        outcome = self.trace.get("sentence", "not possible")
        self.tell(AuditEvent("trace", len(rows), True, outcome, time.perf_counter() - started))
        return trace

    def _run_attack_probes(self) -> None:
        """Probes that compare attacks, on all correct points so far; booked masks, no pass through the model."""
        ledger = self.ledger
        rows = ledger.correct.nonzero().squeeze(1)
        strong = ledger.strong()[rows]
        outcomes = {}
        for row in ledger.rows():
            attempted = ledger.entries[row.name].attempted[rows]
            if row.status == "ran" and bool((attempted | (strong & (row.role == "challenger"))).all()):
                outcomes[row.name] = AttackOutcome(row, ledger.entries[row.name].broken[rows], attempted)
        context = ProbeContext(
            self.target, ledger.x[rows], ledger.y[rows], self.threat, self.attacker.rng("attack probes", rows),
            outcomes, strong,
        )  # fmt: skip
        self.attack_probes = [
            run_probe(probe, context)
            for probe in self.catalogue.probes
            if self._wanted(probe.rule) and "attacks" in probe.needs
        ]

    def _probes(self) -> tuple[ProbeResult, ...]:
        order = {probe.rule: number for number, probe in enumerate(self.catalogue.probes)}
        return tuple(sorted([*self.static_probes, *self.attack_probes], key=lambda result: order[result.rule]))

    def _judge(self) -> Judgement:
        """Judge what has been seen; the power of the search is checked where the judge asks for it."""
        seen = self._observations()
        judgement = judge(seen)
        if judgement.needs != "power":
            return judgement
        self.power = self._check_power()
        return judge(dataclasses.replace(seen, power=self.power))

    def _check_power(self) -> Power:
        """Recapture of what own gradients broke; planted problems where that is too little."""
        ledger = self.ledger
        known = self.challenge.tried()
        if int(known.sum()) >= MIN_KNOWN:
            return self.challenge.recaptured(known)
        rows = ledger.correct.nonzero().squeeze(1)
        own = [spec for spec in self.specs if spec.name not in self.catalogue.foreign and not spec.near_miss]
        specs = tuple(spec for spec in own if spec.role == "challenger" and spec.kind in ("score", "random"))
        self.tell(AuditEvent("power check", len(rows)))
        self.attacker.settle("power check")
        outcome = solve_planted(
            self.target, ledger.x[rows], specs, threat=self.threat, rng=self.attacker.rng("planted", rows)
        )
        power = check_power("planted", outcome.found, outcome.problems, outcome.random_found)
        self.tell(AuditEvent("power check", outcome.problems, True, power.sentence))
        return power

    def _observations(self, broken_off: str = "") -> Observations:
        ledger, settings = self.ledger, self.settings
        strong, challengers, loss = ledger.strong(), ledger.challengers(), ledger.cross_entropy()
        rows = [row for row in ledger.rows() if row.kind != "sanity"]
        ran = [row for row in rows if row.status == "ran"]
        traced = located(self.trace)
        return Observations(
            drawn=len(ledger),
            correct=int(ledger.correct.sum()),
            reference=int(ledger.reference().sum()),
            cross_entropy=int(loss.sum()),
            strong=int(strong.sum()),
            challengers=int(challengers.sum()),
            best=int(ledger.best_known().sum()),
            hidden_by_gradients=int((challengers & ~strong).sum()),
            hidden_by_loss=int((strong & ~loss).sum()),
            probes=self._probes(),
            traced=self.adaptive.confirmed(traced) if self.adaptive else traced,
            repaired=self._repaired(strong),
            looks=len(self.looks),
            missing=self._missing(broken_off),
            unfinished=bool(broken_off),
            attacks_run=len(ran),
            attacks_left_out=len(rows) - len(ran),
            claimed=settings.claim,
            certified=settings.certified,
        )

    def _repaired(self, strong: Tensor) -> int | None:
        """Points that fall through the repaired gradient and stood against the model's own."""
        entry = self.ledger.entries.get("repaired")
        return None if entry is None or entry.status != "ran" else int((entry.broken & ~strong).sum())

    def _missing(self, broken_off: str) -> tuple[str, ...]:
        """Why an essential part of the search did not run."""
        said = [f"The audit is not finished: {broken_off}"] if broken_off else []
        met = [entry for entry in self.ledger.entries.values() if entry.status == "ran" and entry.attempted.any()]
        ran = [entry.spec for entry in met if not entry.spec.near_miss]
        families = {
            "the reference attack": any(spec.role == "reference" and spec.kind != "sanity" for spec in ran),
            "own-gradient attacks on other losses": any(s.role == "strong" and not s.loss_family for s in ran),
            "gradient-free attacks": any(s.role == "challenger" and s.kind in ("score", "decision") for s in ran),
        }
        return (
            *said,
            *(f"Essential part left out or failed: {name}." for name, there in families.items() if not there),
            *(f"Essential part failed: {name}: {reason}." for name, reason in self._broken_off()),
        )

    def _broken_off(self) -> list[tuple[str, str]]:
        """Parts of the search that ended in an error, with the reason: what they would have found nobody knows."""
        own = [e for e in self.ledger.entries.values() if e.spec.name in self._own and e.spec.role != "second_opinion"]
        attacks = [e for e in own if e.lost or (e.status == "error" and e.spec.name not in PLANNED)]
        screen = [probe for probe in self._probes() if probe.rule in SCREEN and probe.status == "error"]
        return [(e.spec.name, e.reason) for e in attacks] + [(probe.rule, probe.reason) for probe in screen]

    def _specs(self) -> tuple[AttackSpec, ...]:
        extra = [external_attack(name) for name in self.settings.extra_attacks]
        check_names((*self.settings.select, *self.settings.ignore), self.catalogue, extra)
        specs = (*self.catalogue.attacks, *extra)
        return tuple(spec for spec in specs if spec.role == "reference" or self._wanted(spec.name))

    def _wanted(self, name: str) -> bool:
        selected = not self.settings.select or name in self.settings.select
        return selected and name not in self.settings.ignore

    def _draw_figures(self) -> None:
        """Figures are extras: what goes wrong here is noted and loses nothing."""
        if not bool(self.ledger.correct.any()):
            return
        self.tell(AuditEvent("figures"))
        self.attacker.settle("figures")
        rng = self.attacker.rng("figures", torch.arange(len(self.ledger)))
        try:
            self.figures = {
                "eps_curve": eps_curve(self.target, self.ledger, self.threat, rng, self.settings.effort.curve_points),
                "surface": surface(self.target, self.ledger, self.threat),
                "gradient_flow": gradient_flow(self.trace),
                "strips": strips(self.target, self.ledger, self.threat),
            }
        except (MaskauditError, RuntimeError) as error:
            self.notes.append(f"The figures could not be drawn: {error}")


def _probe_outcome(result: ProbeResult) -> str:
    if result.status in ("not_applicable", "error"):
        return f"{result.status.replace('_', ' ')}: {result.reason}"
    value = "undefined" if result.value is None else f"{result.value:.3g} {result.unit}"
    return f"{result.status}: {value}"
