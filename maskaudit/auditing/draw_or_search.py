"""How many points a look draws, and when to draw more before any is searched without gradients.

A point costs some hundred passes of white-box attacks where it is robust, some dozens where it is not; a search costs
thousands on each point that withstands them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from maskaudit.auditing.judging import observations, points_to_decide, withstanding
from maskaudit.auditing.state import AuditState
from maskaudit.settings import CORRECT_POINTS, LOOK_GROWTH, MOST_DRAWN
from maskaudit.verdict.limits import MIN_KNOWN, PATIENCE, TELLING_LOSS


def looks(state: AuditState) -> Iterator[int]:
    """The looks of the settings, and further ones for little: at loss level, or where most answers are wrong.

    Points that are answered wrongly cost nothing, and at loss level no search. Further ones are drawn only where they
    may well decide the verdict.
    """
    yield from state.looks
    most = min(len(state.data), MOST_DRAWN)
    while state.settings.samples is None and not state.recognised.hopeless and not state.settings.black_box:
        scarce = int(state.ledger.correct.sum()) < min(state.settings.effort.points, CORRECT_POINTS)
        needed = points_to_decide(state, most) if scarce or state.undecided == {"loss"} else None
        if needed is None:
            return
        state.looks += (min(most, max(needed, math.ceil(LOOK_GROWTH * len(state.ledger)))),)
        yield state.looks[-1]


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
