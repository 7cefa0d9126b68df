"""The phases of a look, one file each: `run(state, rows)` on the correctly classified among its new points.

`rows` are rows of the ledger, int64 (n,).
"""

from __future__ import annotations

from maskaudit.auditing.phases import challengers, probes, sanity, shared, trace, white_box

#: What every look runs before it searches without gradients (`maskaudit.auditing.phases.search`).
WHITE_BOX = (probes.run, trace.run, sanity.run, white_box.run)
#: What a look runs on a model that has no gradient to follow and nothing to look into.
BLACK_BOX = (probes.run, challengers.run, shared.run, probes.compare_attacks)
