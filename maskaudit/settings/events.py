"""Who hears of the steps of an audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class AuditEvent:
    """One step of an audit: what, how many points, whether it is done, and how it ended.

    `total` above 0 announces that many steps to come; `left` is how many seconds the audit still takes, where that can
    be told.
    """

    step: str
    points: int = 0
    finished: bool = False
    outcome: str = ""
    seconds: float = 0.0
    total: int = 0
    left: float | None = None


Listener = Callable[[AuditEvent], None]


def ignore_events(event: AuditEvent) -> None:
    """The listener for callers who want silence."""
