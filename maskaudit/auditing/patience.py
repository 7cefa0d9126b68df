"""When to draw more points before any is searched without gradients: where these decide, or will be needed anyway.

A point costs some hundred passes of white-box attacks where it is robust, some dozens where it is not; a search costs
thousands on each point that withstands them.
"""

from __future__ import annotations

from maskaudit.auditing.judging import nothing_left, observations
from maskaudit.auditing.state import AuditState
from maskaudit.verdict.levels import bounded, gradient_limit
from maskaudit.verdict.limits import MIN_KNOWN, PATIENCE, TELLING_LOSS, TELLING_SHARE


def better_drawn(state: AuditState) -> bool:
    """Whether the next look should draw more points before the search begins."""
    if len(state.ledger) >= min(PATIENCE, state.looks[-1]) or nothing_left(state):
        return False
    seen = observations(state)
    left = seen.correct - seen.strong
    if left <= TELLING_SHARE * seen.drawn or seen.hidden_by_loss > TELLING_LOSS * seen.drawn:
        return True  # hardly any can be hidden; or the loss is about to prove masking by itself
    limit = gradient_limit(state.probe_results())
    return not state.suspected() and (not bounded(0, seen.correct, seen.drawn, limit) or seen.strong < MIN_KNOWN)
