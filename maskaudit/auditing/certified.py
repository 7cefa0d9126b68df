"""The lower end of robust accuracy: points proven robust by bounds, held against what the attacks broke."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from maskaudit.auditing.state import AuditState
from maskaudit.bounds.certificate import certified
from maskaudit.bounds.network import UnboundableError
from maskaudit.bounds.shared import network_of
from maskaudit.errors import ModelError
from maskaudit.settings import AuditEvent


def certify(state: AuditState) -> None:
    """Bound every correctly classified point, the broken ones too; where bounds do not apply, a note says why.

    Raises:
        ModelError: when a point that bounds prove robust was broken: the model does not compute what it shows.
    """
    if not state.settings.certify:
        return
    ledger = state.ledger
    rows = ledger.correct.nonzero().squeeze(1)
    state.tell(AuditEvent("certificate", len(rows)))
    started = time.perf_counter()
    state.certified, reason = _proven(state, rows)
    if state.certified is None:
        state.notes.append(f"No point was certified: {reason}.")
        outcome = f"not possible: {reason}"
    else:
        outcome = f"{int(state.certified.sum())} of {len(rows)} proven robust"
    state.tell(AuditEvent("certificate", len(rows), True, outcome, time.perf_counter() - started))
    wrong = [] if state.certified is None else (state.certified & ledger.best_known()).nonzero().flatten().tolist()
    if wrong:
        row = wrong[0]
        name = ledger.examples_of(row)[0][0]
        state.certified = None
        raise ModelError(
            f"Bounds prove point {ledger.index[row]} robust, and yet {name} broke it: the model does not compute what "
            "its recorded operations say, or a bound is wrong; nothing it answers can be relied on."
        )


def _proven(state: AuditState, rows: Tensor) -> tuple[Tensor | None, str]:
    """Which drawn points (P,) are proven robust, or None and why that is unknown."""
    target, ledger, proven = state.target, state.ledger, torch.zeros(len(state.ledger), dtype=torch.bool)
    if state.settings.black_box:
        return None, "a black box cannot be bounded"
    if not len(rows):
        return proven, ""
    try:
        network = network_of(target, ledger.x[rows])
    except UnboundableError as reason:
        return None, str(reason)
    proven[rows] = certified(
        network, ledger.x[rows], ledger.y[rows], state.threat, coarse=target.device.type != "cpu",
        before=target.before_pass or (lambda: None),
    )  # fmt: skip
    return proven, ""
