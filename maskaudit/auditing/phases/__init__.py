"""The phases of one look at an audit: one file each, `run(state, rows)`, in the order of `PHASES`."""

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

#: What a look runs, on the correctly classified points among its new ones (rows of the ledger, int64 (n,)).
PHASES: tuple[Callable[[AuditState, Tensor], None], ...] = (
    probes.run,
    trace.run,
    sanity.run,
    white_box.run,
    challengers.run,
    repaired.run,
    shared.run,
    second_opinion.run,
    near_misses.run,
    probes.compare_attacks,
)
#: The same for a model that has no gradient to follow and nothing to look into.
BLACK_BOX_PHASES = (probes.run, challengers.run, shared.run, probes.compare_attacks)
