"""The model behind one interface: scores, output kind, randomness, state kept, re-scoring."""

from maskaudit.target.model import (
    EndOfPass,
    Gradient,
    Objective,
    PassLedger,
    Target,
    differentiate,
    usual_batch,
)

__all__ = [
    "EndOfPass",
    "Gradient",
    "Objective",
    "PassLedger",
    "Target",
    "differentiate",
    "usual_batch",
]
