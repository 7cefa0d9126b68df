"""Look inside the model, at the first look, and settle from that the attacks through a repaired gradient."""

from __future__ import annotations

import time

from torch import Tensor

from maskaudit.auditing.adaptive import AdaptiveAttack, planned
from maskaudit.auditing.inspection import inspection
from maskaudit.auditing.state import AuditState
from maskaudit.errors import describe_error
from maskaudit.repairs.blame import traced
from maskaudit.repairs.stages import StandIns
from maskaudit.settings import AuditEvent
from maskaudit.trace.records import Trace


def run(state: AuditState, rows: Tensor) -> None:
    """Trace the model and make the plan of the repaired attacks, for this and all later looks."""
    if state.adaptive is not None:
        return
    trace = _traced(state, rows)
    state.attacker.settle("plan")
    stand_ins = StandIns(state.target, state.ledger.x[rows], threat=state.threat, seed=state.settings.seed)
    plan = planned(trace, state.first_probes, state.settings, state.target, stand_ins)
    nothing = "the trace of the model found nothing to repair" if state.trace else "the model could not be traced"
    state.adaptive = AdaptiveAttack(state.attacker, plan, state.attacks("repaired"), stand_ins, nothing)


def _traced(state: AuditState, rows: Tensor) -> Trace | None:
    """The trace; where it fails, the reason is noted and the audit goes on without."""
    state.tell(AuditEvent("trace", len(rows)))
    started = time.perf_counter()
    x, y = state.ledger.x[rows], state.ledger.y[rows]
    trace: Trace | None = None
    state.attacker.settle("trace")
    try:
        trace = traced(state.target, x, y, eps=state.threat.per_coordinate(x))
        state.trace = inspection(trace)
    except Exception as error:  # foreign code under observation: anything may come up
        state.notes.append(f"The model could not be traced: {describe_error(error)}.")
    outcome = state.trace.get("sentence", "not possible")
    state.tell(AuditEvent("trace", len(rows), True, outcome, time.perf_counter() - started))
    return trace
