"""Draw further points, and ask the model for its clean answers to them."""

from __future__ import annotations

import time

from torch import Tensor

from maskaudit.auditing.budget_limit import prices
from maskaudit.auditing.state import AuditState
from maskaudit.settings import AuditEvent
from maskaudit.target.rescore import clean_correct


def run(state: AuditState, points: int) -> Tensor:
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
    first = 0 if state.probed else len(state.probes(comparing_attacks=False))
    state.tell(AuditEvent("audit", len(x), total=first + len(state.specs) + 1))
    if not before:
        state.tell(AuditEvent("passes", len(x), True, prices(seconds)))
    more = f" of {len(x)} more" if before else f" of {len(x)}"
    state.tell(AuditEvent("clean accuracy", len(x), True, f"{int(correct.sum())}{more} correct"))
    return correct_since(state, before)


def correct_since(state: AuditState, first: int) -> Tensor:
    """Correctly classified points from `first` on, as rows of the ledger."""
    return first + state.ledger.correct[first:].nonzero().squeeze(1)
