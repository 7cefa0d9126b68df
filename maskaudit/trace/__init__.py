"""What happens inside a model: ops, gradient flow, cuts, randomness, and who hides the gradient."""

from maskaudit.trace.model import MAX_POINTS, trace_model
from maskaudit.trace.records import Culprit, Cut, Flow, FunctionCheck, GradientHealth, Op, Randomness, Trace

__all__ = [
    "MAX_POINTS",
    "Culprit",
    "Cut",
    "Flow",
    "FunctionCheck",
    "GradientHealth",
    "Op",
    "Randomness",
    "Trace",
    "trace_model",
]
