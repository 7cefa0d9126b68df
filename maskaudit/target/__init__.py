"""The model behind one interface: scores, output kind, randomness, state kept, re-scoring."""

from maskaudit.target.gradient import Gradient
from maskaudit.target.model import Objective, Target
from maskaudit.target.passes import EndOfPass, PassLedger, differentiate, usual_batch

__all__ = ["EndOfPass", "Gradient", "Objective", "PassLedger", "Target", "differentiate", "usual_batch"]
