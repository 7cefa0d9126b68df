"""Decision-based search: only the answered class is used."""

from maskaudit.attacks.decision.attack import (
    Method,
    decision_based,
    nearest_of_other_classes,
)

__all__ = [
    "Method",
    "decision_based",
    "nearest_of_other_classes",
]
