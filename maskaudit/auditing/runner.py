"""The order of work of one audit: draw points, run the phases on them, judge, and go on until the verdict is decided.

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

import torch
from torch import Tensor, nn

from maskaudit import foreign
from maskaudit.attacks.interface import AttackSpec
from maskaudit.attacks.second_opinion import external_attack
from maskaudit.auditing.attacker import Attacker
from maskaudit.auditing.catalogue import Catalogue, catalogue, check_names
from maskaudit.auditing.certifying import certify
from maskaudit.auditing.document import build_report, scoring
from maskaudit.auditing.evidence import pack_evidence
from maskaudit.auditing.figures import draw_figures
from maskaudit.auditing.journal import Journal
from maskaudit.auditing.judging import judged, nothing_left, observations, proven
from maskaudit.auditing.ledger import Ledger
from maskaudit.auditing.patience import better_drawn
from maskaudit.auditing.phases import BLACK_BOX_PHASES, SEARCH, WHITE_BOX, accuracy, bounds, probes, repaired
from maskaudit.auditing.spending import BudgetSpent, Spending, prices
from maskaudit.auditing.state import AuditState, wanted
from maskaudit.data import Dataset
from maskaudit.errors import ModelError, UsageError
from maskaudit.loading.blackbox import QueriesSpentError
from maskaudit.loading.interface import LoadedModel
from maskaudit.results import EVIDENCE_FILE, AuditReport, Partial
from maskaudit.settings import BUDGETS, AuditEvent, AuditSettings, Listener, allowance, ignore_events
from maskaudit.target import Target, usual_batch
from maskaudit.target.form import Form
from maskaudit.target.recognise import recognise
from maskaudit.target.rescore import clean_correct
from maskaudit.threat import ThreatModel
from maskaudit.verdict.recorded import SPARED
from maskaudit.verdict.rules import judge

#: Fewer queries of a black box than this are not spent on training a surrogate.
TRANSFER_QUERIES = 20_000
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
#: What such a report says, unless the caller that kept it knows more.
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
        keep: is given a partial report now and then, for the case that this process is ended. A caller that
            gives it also takes the partial result of an interrupted audit; for others the interruption goes on.

    Raises:
        InputError, UsageError: when the data or settings do not fit the model.
        ModelError: when the model fails before anything was measured.
    """
    batch_size = settings.batch_size or usual_batch(data.point_shape)
    settings = dataclasses.replace(settings, batch_size=batch_size)
    target = Target(
        loaded.module, bounds=threat.bounds, mean=settings.mean, std=settings.std, batch_size=batch_size,
        reject_class=settings.reject_class, device=settings.device, seed=settings.seed,
        form=Form(features=threat.features),
    )  # fmt: skip
    known = catalogue(settings.effort, threat.norm)
    with target, _few_threads(loaded, data, settings):
        keeper = _Keeper(on_event, keep)
        attacker = Attacker(
            target, Ledger(), threat, settings,
            pool=data.x if pool is None else pool, surrogates=surrogates, journal=journal, on_event=keeper.tell,
        )  # fmt: skip
        keeper.state = state = AuditState(
            target, loaded, data, threat, settings, attacker, known, _chosen(known, settings),
            settings.looks(len(data)), keeper.tell, [*loaded.notes, *data.notes, *known.notes],
        )  # fmt: skip
        _limit(state)
        with contextlib.closing(attacker.engine):
            return _audit(state, takes_partial=keep is not None)


def _limit(state: AuditState) -> None:
    """Have a budget in time or passes end the audit: within an attack where it runs here, else before the next one."""
    allowed = allowance(state.settings.budget) if state.settings.budget not in BUDGETS else None
    if allowed is None:
        return
    spending = Spending(allowed, state.target.ledger)
    state.attacker.afford = spending.check
    if state.settings.workers is None and not state.settings.ray:
        state.target.before_pass = spending.check


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


def _chosen(known: Catalogue, settings: AuditSettings) -> tuple[AttackSpec, ...]:
    """The attacks that the settings ask for; the reference attack always runs."""
    extra = [external_attack(name) for name in settings.attacks]
    check_names((*settings.select, *settings.ignore), known, extra)
    every = (*known.attacks, *extra)
    if settings.black_box:
        few = settings.queries is not None and settings.queries < TRANSFER_QUERIES
        kinds = ("score", "decision", "random", "universal", *(() if few else ("transfer",)))
        left_out = ("finite-differences",) if few else ()
        every = tuple(
            spec for spec in every if spec.kind in kinds and spec.role == "challenger" and spec.name not in left_out
        )
    return tuple(spec for spec in every if spec.role == "reference" or wanted(settings, spec.name))


def _audit(state: AuditState, *, takes_partial: bool) -> Audit:
    """Look until the verdict is decided, and report; what ends the audit early leaves a partial report."""
    ended: ModelError | foreign.Interrupted | None = None
    spent, partial = "", False
    try:
        with foreign.breaking_off_between_calls():
            state.recognised = recognise(state.target, state.data, state.settings)
            state.notes += state.recognised.notes
            if state.recognised.hopeless:
                state.looks = state.looks[:1]
            for points in state.looks:
                state.judgement = None
                _look(state, points)
                state.judgement = judged(state)
                state.undecided = state.judgement.undecided
                state.decided = state.judgement.needs == "nothing"
                if state.decided:
                    break
            if not state.recognised.hopeless:
                _more_points(state)
                _bounded(state)
            if not (state.recognised.hopeless or state.settings.black_box):
                draw_figures(state)
    except BudgetSpent as reason:
        spent = str(reason)
    except (ModelError, foreign.Interrupted) as reason:
        if not len(state.ledger) or (isinstance(reason, foreign.Interrupted) and not takes_partial):
            raise
        ended = reason
    except QueriesSpentError as reason:
        if not len(state.ledger):
            raise
        spent, partial, state.judgement = str(reason), True, None
    state.target.before_pass = None
    if spent and not len(state.ledger):
        raise UsageError(f"{spent} Nothing had been measured yet: give more than --budget {state.settings.budget}.")
    report = _report(state, spent if ended is None else str(ended), partial=partial or ended is not None)
    evidence = pack_evidence(state.ledger, report.to_dict(), scoring(state))
    return Audit(
        report.with_evidence(EVIDENCE_FILE, evidence), evidence,
        failure=ended if isinstance(ended, ModelError) else None,
        interrupted=ended if isinstance(ended, foreign.Interrupted) else None,
    )  # fmt: skip


def _look(state: AuditState, points: int) -> None:
    """Bring the number of drawn points up to `points`, and spend on them what can still change the verdict."""
    rows = _drawn(state, points)
    if state.recognised.hopeless:
        return
    if state.settings.black_box:
        _ask(state, rows)
        return
    if len(rows):
        for phase in WHITE_BOX:
            phase(state, rows)
    if not proven(state):
        _search(state)
    if proven(state):
        _leave_out(state, SPARED)
    probes.compare_attacks(state, rows)


def _ask(state: AuditState, rows: Tensor) -> None:
    """What can be found by queries and transfer alone."""
    if len(rows):
        for phase in BLACK_BOX_PHASES:
            phase(state, rows)
    state.searched = len(state.ledger)


def _drawn(state: AuditState, points: int) -> Tensor:
    """New points up to `points` in all; those that the model classifies correctly, as rows of the ledger."""
    ledger, target = state.ledger, state.target
    before = len(ledger)
    index, x, y = (part[before:] for part in state.data.sample(points, state.settings.seed))
    state.attacker.settle("clean accuracy")
    correct = clean_correct(target.raw, x, y, random=target.random, reject_class=target.reject_class)
    started = time.perf_counter()
    answers = target.raw(x)
    seconds = (time.perf_counter() - started) / max(1, len(x))
    state.attacker.knows(answers)
    ledger.add_points(index, x, y, correct, answers.argmax(dim=1))
    first = 0 if state.first_probes else len(state.probes(comparing_attacks=False))
    state.tell(AuditEvent("audit", len(x), total=first + len(state.specs) + 1))
    if not before:
        state.tell(AuditEvent("passes", len(x), True, prices(seconds)))
    more = f" of {len(x)} more" if before else f" of {len(x)}"
    state.tell(AuditEvent("clean accuracy", len(x), True, f"{int(correct.sum())}{more} correct"))
    return _correct_since(state, before)


def _search(state: AuditState) -> None:
    """What lies beyond white-box attacks, on points that it has not met yet: repaired gradients, then all else.

    The repaired gradient costs little and often proves masking; the rest waits where drawing more is the better buy.
    """
    waits = better_drawn(state)
    if "gradient" not in state.undecided or (waits and not state.suspected()):
        return
    before, state.searched = state.searched, len(state.ledger)
    if nothing_left(state):
        _leave_out(state, "white-box attacks broke nearly every point, so that it could reveal nothing")
        return
    repaired.run(state, _correct_since(state, state.repaired))
    state.repaired = len(state.ledger)
    if proven(state):
        return
    if waits:
        state.searched = before
        return
    rows = _correct_since(state, before)
    for phase in SEARCH:
        phase(state, rows)
        if proven(state):
            return


def _correct_since(state: AuditState, first: int) -> Tensor:
    """Correctly classified points from `first` on, as rows of the ledger."""
    return first + state.ledger.correct[first:].nonzero().squeeze(1)


def _more_points(state: AuditState) -> None:
    """Draw what the accuracy still asks for; attacks are compared no more."""
    state.undecided = frozenset()
    while (points := accuracy.wanted(state)) > len(state.ledger):
        state.judgement = None
        rows = _drawn(state, points)
        if len(rows):
            (_ask if state.settings.black_box else accuracy.run)(state, rows)
        state.judgement = judged(state)


def _bounded(state: AuditState) -> None:
    """What bounds say once the verdict is decided: counterexamples that gradients do not lead to, and proofs."""
    bounds.run(state)
    certify(state)
    state.judgement = judge(dataclasses.replace(observations(state), power=state.power))


def _leave_out(state: AuditState, reason: str) -> None:
    """Say of every attack that did not run why; white-box attacks have reported it themselves."""
    for spec in state.specs:
        if spec.phase != "white_box" and spec.name not in state.ledger.entries:
            state.attacker.skip(spec, reason)


def _report(state: AuditState, broken_off: str = "", *, partial: bool = True) -> AuditReport:
    """The report of what was found so far; with the reason why there is no more, if that is not all.

    Nothing asks the model any more here.

    Args:
        partial: whether it is a partial report for that; not where no more was asked for.
    """
    unfinished = "" if state.decided or state.judgement is not None else broken_off
    judgement = state.judgement or judge(dataclasses.replace(observations(state, unfinished), power=state.power))
    seconds = time.perf_counter() - state.started
    return build_report(
        state, judgement, seconds=seconds, unfinished=unfinished,
        partial=Partial(broken_off, judged=not unfinished) if broken_off and partial else None,
    )  # fmt: skip


class _Keeper:
    """Passes events on; at the end of a step it keeps what was found so far, where that costs little."""

    def __init__(self, on_event: Listener, keep: Keeper | None) -> None:
        self.on_event, self.keep, self.keep_after = on_event, keep, 0.0
        self.state: AuditState | None = None

    def tell(self, event: AuditEvent) -> None:
        """A listener."""
        self.on_event(event)
        started, state = time.perf_counter(), self.state
        due = event.finished and started >= self.keep_after
        if due and self.keep is not None and state is not None and len(state.ledger):
            self.keep(_report(state, UNFINISHED))
            ended = time.perf_counter()
            self.keep_after = ended + (ended - started) / KEEPING
