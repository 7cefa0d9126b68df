"""When to draw more points before any is searched without gradients: where these decide, or will be needed anyway.

A point costs some hundred passes of white-box attacks where it is robust, some dozens where it is not; a search costs
thousands on each point that withstands them.
"""

from __future__ import annotations

from dataclasses import replace

from maskaudit.auditing.judging import observations, withstanding
from maskaudit.auditing.state import AuditState
from maskaudit.verdict.limits import MIN_KNOWN, PATIENCE, TELLING_LOSS


def better_drawn(state: AuditState) -> bool:
    """Whether the next look should draw more points before the search begins."""
    drawn, settings = len(state.ledger), state.settings
    asked_for = settings.samples is not None or settings.precision is not None
    most = state.looks[-1] if asked_for else min(PATIENCE, state.looks[-1])
    left = withstanding(state)
    if drawn >= most or left.bounded:
        return False
    seen = observations(state)
    if left.bounded_at(most) or seen.hidden_by_loss > TELLING_LOSS * drawn:
        return True  # hardly any can be hidden; or the loss is about to prove masking by itself
    return not state.suspected() and (not replace(left, hidden=0).bounded or seen.strong < MIN_KNOWN)
