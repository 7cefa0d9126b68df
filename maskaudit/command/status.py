"""The exit status of an audit: the contract with CI jobs."""

from __future__ import annotations

from typing import Any

from maskaudit.settings import fails

INCONCLUSIVE_STATUS = 3
MODEL_FAILED_STATUS = 4
#: What would be a success, but a file that was asked for could not be written.
UNWRITTEN_STATUS = 2
#: A traceback of maskaudit itself (EX_SOFTWARE of sysexits.h).
BUG_STATUS = 70


def exit_status(document: dict[str, Any], fail_on: str, *, failed: bool = False) -> int:
    """The contract's exit status for a report."""
    label, claim = document["verdict"]["label"], document["claim"]["status"]
    if failed:
        return MODEL_FAILED_STATUS
    if fail_on == "never":
        return 0
    if fails(label, claim, fail_on) and (label != "inconclusive" or claim == "refuted"):
        return 1
    return INCONCLUSIVE_STATUS if label == "inconclusive" else 0
