"""Beyond white-box attacks: repaired gradients first, which cost little and often prove masking; then all else."""

from __future__ import annotations

from maskaudit.auditing.draw_or_search import better_drawn
from maskaudit.auditing.judging import proven, withstanding
from maskaudit.auditing.phases import challengers, near_misses, repaired, second_opinion, shared
from maskaudit.auditing.phases.draw import correct_since
from maskaudit.auditing.state import AuditState

#: What runs after the repaired gradient, once nothing cheaper can decide.
PHASES = (challengers.run, repaired.from_candidates, shared.run, second_opinion.run, near_misses.run)


def run(state: AuditState) -> None:
    """Search the points not met yet; all but repaired gradients waits where drawing more is the better buy."""
    waits = better_drawn(state)
    if "gradient" not in state.undecided or (waits and not state.suspected()):
        return
    before, state.searched = state.searched, len(state.ledger)
    if withstanding(state).bounded:
        leave_out(state, "white-box attacks broke nearly every point, so that it could reveal nothing")
        return
    repaired.run(state, correct_since(state, state.repaired))
    state.repaired = len(state.ledger)
    if proven(state):
        return
    if waits:
        state.searched = before
        return
    rows = correct_since(state, before)
    for phase in PHASES:
        phase(state, rows)
        if proven(state):
            return


def leave_out(state: AuditState, reason: str) -> None:
    """Say of every attack that did not run why; white-box attacks have reported it themselves."""
    for spec in state.specs:
        if spec.phase != "white_box" and spec.name not in state.ledger.entries:
            state.attacker.skip(spec, reason)
