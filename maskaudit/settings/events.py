"""Who hears of the steps of an audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class AuditEvent:
    """One step of an audit: what, how many points, whether it is done, and how it ended.

    `total` above 0 announces that many steps to come, so that a listener can estimate the time left.
    """

    step: str
    points: int = 0
    finished: bool = False
    outcome: str = ""
    seconds: float = 0.0
    total: int = 0


Listener = Callable[[AuditEvent], None]


def ignore_events(event: AuditEvent) -> None:
    """The listener for callers who want silence."""
