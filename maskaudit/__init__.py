"""maskaudit: is this model robust, or do its gradients merely lie?

The public functions are loaded on first use, so that `maskaudit --help` need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskaudit.api import assert_not_masked, audit, load
    from maskaudit.results import AuditReport
    from maskaudit.settings import AuditSettings
    from maskaudit.threat import ThreatModel

__version__ = "0.1.0"

__all__ = ["AuditReport", "AuditSettings", "ThreatModel", "__version__", "assert_not_masked", "audit", "load"]

_HOMES = {
    "assert_not_masked": "maskaudit.api",
    "audit": "maskaudit.api",
    "load": "maskaudit.api",
    "AuditReport": "maskaudit.results",
    "AuditSettings": "maskaudit.settings",
    "ThreatModel": "maskaudit.threat",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maskaudit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
