"""Further points once the verdict is decided: for the accuracy that was asked for, or to judge a claim.

They meet the white-box attacks, of all else what broke points before that white-box attacks had left, and from their
best candidates the attacks on near misses: a decided verdict needs no comparison of attacks, and what found nothing on
the points before is not expected to on these.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskaudit.auditing.phases import near_misses, white_box
from maskaudit.auditing.state import AuditState

#: How many times as many points are drawn at most before the accuracy is looked at again.
PORTION = 2


def wanted(state: AuditState) -> int:
    """The number of points to draw next, in all; that of those drawn where there are enough."""
    drawn, settings, available = len(state.ledger), state.settings, len(state.data)
    most = state.looks[-1] if settings.samples is not None else available
    if settings.precision is not None:
        goal = _precise(state, settings.precision)
    elif settings.samples is not None:
        goal = most
    else:
        goal = min(most, settings.effort.claim_points) if _claim_is_open(state) else drawn
    return max(drawn, min(goal, most, PORTION * max(drawn, 1)))


def _claim_is_open(state: AuditState) -> bool:
    return state.judgement is not None and state.judgement.claim.status == "not_refuted"


def _precise(state: AuditState, half_width: float) -> int:
    """How many points give an interval of the best-known accuracy that reaches so far to either side."""
    drawn = len(state.ledger)
    share = state.judgement.accuracy["best_known"] if state.judgement is not None else None
    if share is None:
        return drawn
    reach = max(share.high - share.value, share.value - share.low)
    return drawn if reach <= half_width else math.ceil(drawn * max(1.1, (reach / half_width) ** 2))


def run(state: AuditState, rows: Tensor) -> None:
    """White-box attacks, what has been of use, and near misses, on points `rows` of the ledger."""
    white_box.run(state, rows)
    if state.adaptive is not None and state.attacks("repaired"):
        state.adaptive.run(rows, useful=True)
    for spec in state.attacks("challengers"):
        left = rows[~state.ledger.best_known()[rows]]
        if len(left) and _was_of_use(state, spec.name):
            state.attacker.run(spec, left)
    near_misses.run(state, rows)


def _was_of_use(state: AuditState, name: str) -> bool:
    """Whether an attack broke points that white-box attacks had left."""
    entry = state.ledger.entries.get(name)
    return entry is not None and bool(torch.any(entry.broken & ~state.ledger.strong()))
