"""Where attacks run: in this process, in worker processes, or on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskaudit.auditing.engine.interface import Engine, EngineError
from maskaudit.auditing.engine.local import Local

if TYPE_CHECKING:
    from maskaudit.settings import AuditSettings

__all__ = ["Engine", "EngineError", "engine_for"]


def engine_for(settings: AuditSettings) -> Engine:
    """The engine that the settings name; this process if they name none.

    Raises:
        UsageError: when it is not available here.
    """
    if settings.ray:
        from maskaudit.auditing.engine.ray import Ray

        return Ray(settings.ray, device=settings.device, memory=settings.memory, call_timeout=settings.call_timeout)
    if settings.workers is not None:
        from maskaudit.auditing.engine.processes import Processes

        return Processes(settings.workers, device=settings.device)
    return Local()
