"""Branches that the user named: searched through alone and without, and what breaks the whole network is booked."""

from __future__ import annotations

from torch import Tensor

from maskaudit.auditing.branches import added, try_branch
from maskaudit.auditing.state import AuditState
from maskaudit.settings import AuditEvent


def run(state: AuditState, rows: Tensor) -> None:
    """Each branch on the new points; not where answers are random, since parts of a gradient then belong to none."""
    branches = dict.fromkeys(state.settings.branches)
    if state.target.random:
        note = (
            "The branches were not searched: the model answers at random, and parts of a gradient belong to no answer."
        )
        state.notes += [note] if branches and note not in state.notes else []
        return
    for branch in branches:
        _try(state, branch, rows)


def _try(state: AuditState, branch: str, rows: Tensor) -> None:
    attacker, name = state.attacker, f"branch {branch}"
    state.tell(AuditEvent(name, len(rows)))
    attacker.settle(name)
    attacker.afford()
    row, found = try_branch(
        state.target, state.ledger.x[rows], state.ledger.y[rows], branch, threat=state.threat,
        rng=attacker.rng(name, rows), steps=state.settings.effort.steps,
    )  # fmt: skip
    for one in found:
        attacker.book(one.spec, rows, one.attempt, one.score, one.spent, one.seconds)
    earlier = state.branches.get(branch)
    state.branches[branch] = row if earlier is None else added(earlier, row)
    state.tell(AuditEvent(name, len(rows), True, f"alone {row.alone}, masked {row.masked}, whole {row.whole}"))
