"""The order of work of one audit: draw points, run the phases on them, judge, and go on until the verdict is decided.

The runner knows nothing of terminals or files: it reports progress to a listener,
keeps finished attacks in a journal if it is given one, and returns an `Audit`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass

from torch import Tensor

from maskaudit import foreign
from maskaudit.auditing.attacker import Attacker
from maskaudit.auditing.budget_limit import BudgetSpent, limit
from maskaudit.auditing.catalogue import Catalogue, catalogue, chosen, too_dear
from maskaudit.auditing.certified import certify
from maskaudit.auditing.document import Keeper, Keeping, report_so_far, scoring
from maskaudit.auditing.draw_or_search import looks
from maskaudit.auditing.evidence import pack_evidence
from maskaudit.auditing.figures import draw_figures
from maskaudit.auditing.journal import Journal
from maskaudit.auditing.judging import judged, judged_so_far, proven
from maskaudit.auditing.ledger import Ledger
from maskaudit.auditing.phases import (
    accuracy,
    bounds,
    branches,
    challengers,
    draw,
    probes,
    sanity,
    search,
    shared,
    trace,
    white_box,
)
from maskaudit.auditing.preparing import Prepared
from maskaudit.auditing.state import AuditState
from maskaudit.errors import ModelError, UsageError
from maskaudit.loading.blackbox import QueriesSpentError
from maskaudit.repairs.branch import check_branches
from maskaudit.results import EVIDENCE_FILE, AuditReport
from maskaudit.settings import AuditSettings, Listener, ignore_events
from maskaudit.target.process_state import threads
from maskaudit.target.recognise import recognise
from maskaudit.verdict.recorded import SPARED

#: What every look runs before it searches without gradients (`maskaudit.auditing.phases.search`).
WHITE_BOX = (probes.run, trace.run, sanity.run, white_box.run, branches.run)
#: What a look runs on a model that has no gradient to follow and nothing to look into.
BLACK_BOX = (probes.run, challengers.run, shared.run, probes.compare_attacks)


@dataclass(frozen=True)
class Audit:
    """A finished audit, or what one that broke off had found.

    Attributes:
        report: the document.
        evidence: bytes of the evidence file that belongs to it.
        failure: the error of the audited model that ended it early, if any.
        interrupted: the request to stop that ended it early, if any.
        cached: it was not made now, but found among earlier ones.
    """

    report: AuditReport
    evidence: bytes
    failure: ModelError | None = None
    interrupted: foreign.Interrupted | None = None
    cached: bool = False


def run_audit(
    prepared: Prepared, *, journal: Journal | None = None, on_event: Listener = ignore_events,
    keep: Keeper | None = None,
) -> Audit:  # fmt: skip
    """Audit a model on a data set under a threat model.

    Args:
        journal: keeps finished attacks, so that an interrupted audit can resume.
        keep: is given a partial report now and then, for the case that this process is ended. A caller that
            gives it also takes the partial result of an interrupted audit; for others the interruption goes on.

    Raises:
        InputError, UsageError: when the data or settings do not fit the model.
        ModelError: when the model fails before anything was measured.
    """
    loaded, data, threat, target = prepared.loaded, prepared.data, prepared.threat, prepared.target()
    settings = dataclasses.replace(prepared.settings, batch_size=target.batch_size)
    check_branches(None if settings.black_box else target.model, settings.branches)
    known = catalogue(settings.effort, threat.norm)
    # As in every worker: with more threads sums are taken in another order, and results differ in the last bits.
    alone = prepared.small or settings.workers is not None or bool(settings.ray)
    with target, threads(1) if alone else contextlib.nullcontext():
        keeper = Keeping(on_event, keep)
        attacker = Attacker(
            target, Ledger(), threat, settings,
            pool=prepared.pool, surrogates=prepared.surrogates, journal=journal, on_event=keeper.tell,
        )  # fmt: skip
        notes = [*loaded.notes, *data.notes, *known.notes, *_economies(known, settings)]
        keeper.state = state = AuditState(
            target, loaded, data, threat, settings, attacker, known, chosen(known, settings),
            settings.looks(len(data)), keeper.tell, notes,
        )  # fmt: skip
        limit(state)
        with contextlib.closing(attacker.engine):
            return _audit(state, takes_partial=keep is not None)


def _economies(known: Catalogue, settings: AuditSettings) -> list[str]:
    """What a black box with few queries was not asked for, as a note."""
    dear = too_dear(known, settings)
    return [f"Left out, since {settings.queries:,} queries are too few for them: {', '.join(dear)}."] if dear else []


def _audit(state: AuditState, *, takes_partial: bool) -> Audit:
    """Look until the verdict is decided, and report; what ends the audit early leaves a partial report."""
    ended: ModelError | foreign.Interrupted | None = None
    spent, partial = "", False
    try:
        with foreign.breaking_off_between_calls():
            _look_until_decided(state)
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
    if spent or ended is not None:
        _say_what_never_began(state)
    if spent and not len(state.ledger):
        raise UsageError(f"{spent} Nothing had been measured yet: give more than --budget {state.settings.budget}.")
    report = report_so_far(state, spent if ended is None else str(ended), partial=partial or ended is not None)
    evidence = pack_evidence(state.ledger, report.to_dict(), scoring(state))
    return Audit(
        report.with_evidence(EVIDENCE_FILE, evidence), evidence,
        failure=ended if isinstance(ended, ModelError) else None,
        interrupted=ended if isinstance(ended, foreign.Interrupted) else None,
    )  # fmt: skip


def _say_what_never_began(state: AuditState) -> None:
    """Name the attacks that had met no point when the audit ended; those that say another reason keep it."""
    for spec in state.specs:
        if state.ledger.entry(spec).status == "ran":
            state.attacker.skip(spec, "the audit ended before it met a point")


def _look_until_decided(state: AuditState) -> None:
    """Judge after every look; then draw what the accuracy still asks for, and the figures."""
    state.recognised = recognise(state.target, state.data, state.settings)
    state.notes += state.recognised.notes
    hopeless = bool(state.recognised.hopeless)
    state.looks = state.looks[:1] if hopeless else state.looks
    for points in looks(state):
        state.judgement = None
        _look(state, points)
        state.judgement = judged(state)
        state.undecided = state.judgement.undecided
        state.decided = state.judgement.needs == "nothing"
        if state.decided:
            break
    if hopeless:
        return
    _more_points(state)
    _bound(state)
    if not state.settings.black_box:
        draw_figures(state)


def _bound(state: AuditState) -> None:
    """What bounds say once the verdict is decided: counterexamples that gradients do not lead to, and proofs."""
    bounds.run(state)
    certify(state)
    state.judgement = judged_so_far(state)


def _look(state: AuditState, points: int) -> None:
    """Bring the number of drawn points up to `points`, and spend on them what can still change the verdict."""
    rows = draw.run(state, points)
    if state.recognised.hopeless:
        return
    if state.settings.black_box:
        _ask(state, rows)
        return
    if len(rows):
        for phase in WHITE_BOX:
            phase(state, rows)
    if not proven(state):
        search.run(state)
    if proven(state):
        search.leave_out(state, SPARED)
    probes.compare_attacks(state, rows)


def _ask(state: AuditState, rows: Tensor) -> None:
    """What can be found without gradients."""
    if len(rows):
        for phase in BLACK_BOX:
            phase(state, rows)
    state.searched = len(state.ledger)


def _more_points(state: AuditState) -> None:
    """Draw what the accuracy still asks for; attacks are compared no more."""
    state.undecided = frozenset()
    while (points := accuracy.wanted(state)) > len(state.ledger):
        state.judgement = None
        rows = draw.run(state, points)
        if len(rows):
            (_ask if state.settings.black_box else accuracy.run)(state, rows)
        state.judgement = judged(state)
