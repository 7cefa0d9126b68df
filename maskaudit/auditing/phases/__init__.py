"""The phases of a look: one file each, `run(state, rows)`; `WHITE_BOX`, then repaired gradients, then `SEARCH`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from maskaudit.auditing.phases import (
    challengers,
    near_misses,
    probes,
    repaired,
    sanity,
    second_opinion,
    shared,
    trace,
    white_box,
)
from maskaudit.auditing.state import AuditState

Phase = Callable[[AuditState, Tensor], None]

#: What every look runs on the correctly classified points among its new ones (rows of the ledger, int64 (n,)).
WHITE_BOX: tuple[Phase, ...] = (probes.run, trace.run, sanity.run, white_box.run)
#: What runs, after the repaired gradient, on the points that it has not met yet, once nothing cheaper can decide.
SEARCH: tuple[Phase, ...] = (
    challengers.run,
    repaired.from_candidates,
    shared.run,
    second_opinion.run,
    near_misses.run,
)
#: The same for a model that has no gradient to follow and nothing to look into.
BLACK_BOX_PHASES = (probes.run, challengers.run, shared.run, probes.compare_attacks)
