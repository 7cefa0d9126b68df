"""The exit status of an audit: the contract with CI jobs."""

from __future__ import annotations

from typing import Any

FAIL_ON = ("masked", "suspect", "inconclusive", "never")
INCONCLUSIVE_STATUS = 3
MODEL_FAILED_STATUS = 4


def exit_status(document: dict[str, Any], fail_on: str, *, failed: bool = False) -> int:
    """The contract's exit status for a report."""
    label, claim = document["verdict"]["label"], document["claim"]["status"]
    if failed:
        return MODEL_FAILED_STATUS
    if fail_on == "never":
        return 0
    if label in FAIL_ON[: FAIL_ON.index(fail_on) + 1] and label != "inconclusive":
        return 1
    if claim == "refuted":
        return 1
    return INCONCLUSIVE_STATUS if label == "inconclusive" else 0
